//! `passwd`: one's own password, changed with the present one or set with a token.

use std::io::{IsTerminal as _, Read as _};

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::auth::v1::{ChangePasswordRequest, SetPasswordRequest};

use crate::args::Global;
use crate::client::{Chosen, Client, tokens_from};
use crate::context::Store;
use crate::failure::Failure;
use crate::output::note;

/// Flags of `passwd`.
#[derive(Debug, Args)]
pub(crate) struct PasswdArgs {
    /// Set a password with a token, which an administrator made: standard input has the token on its first line and the
    /// new password on its second. At a terminal both are asked for.
    #[arg(long)]
    token_stdin: bool,
    /// Read the present password and the new one from standard input, a line each. Without it: prompts.
    #[arg(long, conflicts_with = "token_stdin")]
    password_stdin: bool,
    /// Address of the control plane's gRPC port, where there is no context yet.
    #[arg(long, value_name = "URL", requires = "token_stdin")]
    grpc: Option<String>,
}

/// `passwd`.
pub(crate) async fn run(global: &Global, args: PasswdArgs) -> anyhow::Result<()> {
    if args.token_stdin {
        let grpc = match args.grpc {
            Some(grpc) => grpc,
            None => address(global)?,
        };
        let (token, password) = ask(args.token_stdin, "Token")?;
        let link = Client::link(&grpc, None).await?;
        let (token, password) = (token.expose_secret().to_owned(), password.expose_secret().to_owned());
        let request = SetPasswordRequest { token, password };
        PrincipalServiceClient::new(link).set_password(request).await.map_err(|status| {
            match status.code() {
                tonic::Code::Unauthenticated => Failure::failed("the token is wrong, was used, or has ended")
                    .next("Ask for another one: `wafflectl user reset-password ADDRESS`."),
                _ => Failure::from(status),
            }
        })?;
        note("The password is set. Log in with `wafflectl login`.");
        return Ok(());
    }
    let client = Client::open(global).await?;
    let Some(tokens) = &client.chosen.context.tokens else {
        return Err(Failure::failed("an API key changes no password")
            .next("Log in with the present password first: `wafflectl login`.")
            .into());
    };
    let email = tokens.email.clone();
    let (present, password) = ask(args.password_stdin, "Present password")?;
    let request = ChangePasswordRequest {
        present_password: present.expose_secret().to_owned(),
        password: password.expose_secret().to_owned(),
    };
    let answer = client.people().change_password(request).await.map_err(Failure::from)?.into_inner();
    let tokens = tokens_from(answer.tokens, email)?;
    let Chosen { store, name, .. } = &client.chosen;
    store.change(|contexts| {
        if let Some(context) = contexts.contexts.get_mut(name) {
            context.tokens = Some(tokens);
        }
        Ok(())
    })?;
    note("The password is changed. All other sessions have ended.");
    Ok(())
}

fn address(global: &Global) -> anyhow::Result<String> {
    let contexts = Store::locate(global)?.load()?;
    let context = contexts.chosen(global).and_then(|name| contexts.contexts.get(&name).cloned());
    let grpc = context.map(|context| context.grpc).filter(|grpc| !grpc.is_empty());
    grpc.ok_or_else(|| {
        Failure::usage("no context is chosen, so the address is needed")
            .next("Give the control plane's gRPC address with --grpc.")
            .into()
    })
}

/// What is there already, and the new password: two lines of standard input, or two prompts.
fn ask(from_stdin: bool, first: &str) -> anyhow::Result<(SecretString, SecretString)> {
    if std::io::stdin().is_terminal() {
        let known = dialoguer::Password::new().with_prompt(first).interact()?;
        let password = dialoguer::Password::new()
            .with_prompt("New password")
            .with_confirmation("Again", "They differ")
            .interact()?;
        return Ok((known.into(), password.into()));
    }
    if !from_stdin {
        return Err(Failure::usage("there is no terminal to ask at")
            .next("Give both on standard input, a line each, with --password-stdin.")
            .into());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    let mut lines = text.lines();
    match (lines.next(), lines.next(), lines.next()) {
        (Some(known), Some(password), None | Some("")) => Ok((known.into(), password.into())),
        _ => Err(Failure::usage("standard input must have two lines").into()),
    }
}

//! Who the operator is: log-in and log-out, `whoami`, and the contexts that remember it.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use secrecy::{ExposeSecret as _, SecretString};
use waffles_core::credential::key_id;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::{GetSelfRequest, GetSelfResponse, LoginRequest, LogoutRequest};

use crate::args::Global;
use crate::client::{Chosen, Client, tokens_from};
use crate::context::{Context, Contexts, Store, is_open_to_others};
use crate::failure::Failure;
use crate::output::shape::{ContextShape, Whoami};
use crate::output::{note, print};

/// The name of a context that is made without one being given.
const DEFAULT_CONTEXT: &str = "default";

/// Flags of `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The account; asked for at a terminal when absent.
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// Read the password from standard input. Without it: `WAFFLES_PASSWORD`, else a prompt.
    #[arg(long, conflicts_with = "api_key_file")]
    password_stdin: bool,
    /// Keep the API key in this file (`-` is standard input) instead of a session.
    #[arg(long, value_name = "FILE", conflicts_with = "email")]
    api_key_file: Option<PathBuf>,
    /// Address of the control plane's gRPC port; needed for a new context.
    #[arg(long, value_name = "URL")]
    grpc: Option<String>,
    /// The authority (PEM) that certifies an address that begins with https://: what
    /// `waffles-control-plane ca` prints.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Address of the control plane's HTTP port, for `doctor`.
    #[arg(long, value_name = "URL")]
    http: Option<String>,
    /// Address of the data plane's MCP endpoint, for `call`, `server tools` and `doctor`.
    #[arg(long, value_name = "URL")]
    mcp: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List contexts.
    List,
    /// Make a context the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Show a context, without its secrets.
    Show {
        /// Its name; the one in use when absent.
        name: Option<String>,
    },
    /// Forget a context and its credential.
    Remove {
        /// Its name.
        name: String,
    },
}

/// Reads a secret from a file, or from standard input for `-`. One line end is cut off.
pub(crate) fn read_secret(path: &Path) -> anyhow::Result<SecretString> {
    let mut text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    if text.ends_with('\n') {
        text.pop();
    }
    if text.ends_with('\r') {
        text.pop();
    }
    if text.is_empty() {
        return Err(Failure::usage(format!("{} is empty", path.display())).into());
    }
    Ok(text.into())
}

/// Reads a secret from an environment variable.
pub(crate) fn secret_env(name: &str) -> anyhow::Result<Option<SecretString>> {
    let Some(value) = std::env::var_os(name) else { return Ok(None) };
    let value = value.into_string().map_err(|_| Failure::usage(format!("{name} is not UTF-8")))?;
    Ok(Some(value).filter(|value| !value.is_empty()).map(Into::into))
}

/// `login`.
pub(crate) async fn login(global: &Global, args: LoginArgs) -> anyhow::Result<()> {
    let store = Store::locate(global)?;
    let contexts = store.load()?;
    let mut name = contexts.chosen(global).unwrap_or_else(|| DEFAULT_CONTEXT.to_owned());
    let mut context = contexts.contexts.get(&name).cloned().unwrap_or_default();
    if let Some(tenant) =
        global.tenant.as_ref().filter(|tenant| !context.grpc.is_empty() && **tenant != context.tenant())
    {
        // The log-in of one tenant does not take the place of another's: it gets a context of its own, at the same place.
        if global.context.is_some() || contexts.contexts.contains_key(tenant) {
            let message = format!("context {name} is for tenant {}, not {tenant}", context.tenant());
            return Err(Failure::usage(message)
                .next(format!(
                    "Name a context for it: `wafflectl --tenant {tenant} --context NAME login --grpc {}`.",
                    context.grpc
                ))
                .into());
        }
        let Context { grpc, http, mcp, .. } = context;
        context = Context { grpc, http, mcp, tenant: Some(tenant.clone()), ..Context::default() };
        name.clone_from(tenant);
    }
    // Its key would be lost, and may be the only one there is.
    if let Some(grpc) = args.grpc.as_ref().filter(|grpc| !context.grpc.is_empty() && **grpc != context.grpc) {
        let message = format!("context {name} is for {}, not {grpc}", context.grpc);
        return Err(Failure::usage(message)
            .next(format!("Name a context for it: `wafflectl --context NAME login --grpc {grpc}`."))
            .into());
    }
    context.grpc = args.grpc.clone().unwrap_or(context.grpc);
    if let Some(path) = &args.ca {
        let read = std::fs::read_to_string(path);
        context.ca = Some(read.with_context(|| format!("cannot read {}", path.display()))?);
    }
    context.http = args.http.clone().or(context.http);
    context.mcp = args.mcp.clone().or(context.mcp);
    if context.grpc.is_empty() {
        return Err(Failure::usage(format!("context {name} does not exist yet, so its address is needed"))
            .next("Give the control plane's gRPC address: `wafflectl login --grpc http://HOST:8082`.")
            .into());
    }
    let self_ = match &args.api_key_file {
        Some(file) => keep_key(&mut context, file).await?,
        None => log_in(global, &args, &mut context).await?,
    };
    store.change(|contexts| {
        contexts.contexts.insert(name.clone(), context);
        contexts.current = Some(name.clone());
        Ok(())
    })?;
    note(&format!("The credential is kept in context {name} of {}.", store.path().display()));
    print(global.output, &Whoami::new(&name, self_))
}

async fn keep_key(context: &mut Context, file: &Path) -> anyhow::Result<GetSelfResponse> {
    let key = read_secret(file)?;
    if key_id(key.expose_secret()).is_none() {
        return Err(Failure::usage("that is not an API key: its form or checksum is wrong")
            .next("A key begins with wfl_ and has 69 characters; check that it was copied whole.")
            .into());
    }
    let link = Client::link(&*context, Some(&key)).await?;
    let answer = AuthServiceClient::new(link).get_self(GetSelfRequest {}).await.map_err(Failure::from)?;
    let answer = answer.into_inner();
    context.tenant = answer.principal.as_ref().map(|principal| principal.tenant.clone());
    context.api_key = Some(key);
    context.tokens = None;
    Ok(answer)
}

async fn log_in(global: &Global, args: &LoginArgs, context: &mut Context) -> anyhow::Result<GetSelfResponse> {
    let known = context.tokens.as_ref().map(|tokens| tokens.email.clone());
    let email = match &args.email {
        Some(email) => email.clone(),
        None => ask_email(known)?,
    };
    let password = match (args.password_stdin, secret_env("WAFFLES_PASSWORD")?) {
        (true, _) => read_secret(Path::new("-"))?,
        (false, Some(password)) => password,
        (false, None) => ask_password(&email)?,
    };
    let tenant = global.tenant.clone().or_else(|| context.tenant.clone()).unwrap_or_default();
    let link = Client::link(&*context, None).await?;
    let request =
        LoginRequest { email: email.clone(), password: password.expose_secret().to_owned(), tenant };
    let answer = AuthServiceClient::new(link).login(request).await.map_err(|status| {
        match status.code() {
            // Not the usual advice for this code, which is to log in.
            tonic::Code::Unauthenticated => Failure::failed("the account or the password is wrong").next(
                "The administrator of a lost password: `waffles-control-plane admin-password` makes a new one.",
            ),
            _ => Failure::from(status),
        }
    })?;
    let answer = answer.into_inner();
    let tokens = tokens_from(answer.tokens, email)?;
    let link = Client::link(&*context, Some(&tokens.access)).await?;
    let self_ = AuthServiceClient::new(link).get_self(GetSelfRequest {}).await.map_err(Failure::from)?;
    context.tenant = answer.principal.map(|principal| principal.tenant);
    context.tokens = Some(tokens);
    Ok(self_.into_inner())
}

fn ask_email(known: Option<String>) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        return known
            .ok_or_else(|| Failure::usage("no account is given").next("Name it with --email.").into());
    }
    let mut prompt = dialoguer::Input::<String>::new().with_prompt("E-mail");
    if let Some(known) = known {
        prompt = prompt.default(known);
    }
    Ok(prompt.interact_text()?)
}

fn ask_password(email: &str) -> anyhow::Result<SecretString> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("no password is given, and there is no terminal to ask at")
            .next("Give it on standard input with --password-stdin, or in WAFFLES_PASSWORD.")
            .into());
    }
    Ok(dialoguer::Password::new().with_prompt(format!("Password of {email}")).interact()?.into())
}

/// `logout`.
pub(crate) async fn logout(global: &Global) -> anyhow::Result<()> {
    let chosen = Chosen::find(global)?;
    let Some(tokens) = &chosen.context.tokens else {
        note(&format!("Context {} has no session.", chosen.name));
        return Ok(());
    };
    let link = Client::link(&chosen.context, None).await?;
    let refresh_token = tokens.refresh.expose_secret().to_owned();
    AuthServiceClient::new(link).logout(LogoutRequest { refresh_token }).await.map_err(Failure::from)?;
    chosen.store.change(|contexts| {
        if let Some(context) = contexts.contexts.get_mut(&chosen.name) {
            context.tokens = None;
        }
        Ok(())
    })?;
    note(match chosen.context.api_key {
        Some(_) => "The session has ended. The context uses its API key again.",
        None => "The session has ended.",
    });
    Ok(())
}

/// `whoami`.
pub(crate) async fn whoami(global: &Global) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let answer = client.identity().get_self(GetSelfRequest {}).await.map_err(Failure::from)?;
    print(global.output, &Whoami::new(&client.chosen.name, answer.into_inner()))
}

/// `context …`.
pub(crate) fn context(global: &Global, command: ContextCommand) -> anyhow::Result<()> {
    let store = Store::locate(global)?;
    if is_open_to_others(store.path()) {
        let path = store.path().display();
        note(&format!("warning: others can read {path}, which holds secrets; run `chmod 600 {path}`."));
    }
    let contexts = store.load()?;
    let missing = |name: &str| {
        Failure::usage(format!("there is no context {name} in {}", store.path().display()))
            .next("List them with `wafflectl context list`.")
    };
    match command {
        ContextCommand::List => {
            let shapes: Vec<ContextShape> =
                contexts.contexts.keys().filter_map(|name| shape(global, &store, &contexts, name)).collect();
            print(global.output, shapes.as_slice())
        }
        ContextCommand::Show { name } => {
            let name = name.or_else(|| contexts.chosen(global));
            let name = name.ok_or_else(|| {
                Failure::usage("no context is chosen").next("Choose one with `wafflectl context use NAME`.")
            })?;
            let shape = shape(global, &store, &contexts, &name).ok_or_else(|| missing(&name))?;
            print(global.output, &shape)
        }
        ContextCommand::Use { name } => {
            store.change(|contexts| {
                if !contexts.contexts.contains_key(&name) {
                    return Err(missing(&name).into());
                }
                contexts.current = Some(name.clone());
                Ok(())
            })?;
            note(&format!("Context {name} is the current one now."));
            Ok(())
        }
        ContextCommand::Remove { name } => {
            store.change(|contexts| {
                contexts.contexts.remove(&name).ok_or_else(|| missing(&name))?;
                contexts.current.take_if(|current| *current == name);
                Ok(())
            })?;
            note(&format!("Context {name} is forgotten. Its API keys and sessions stay good until revoked."));
            Ok(())
        }
    }
}

fn shape(global: &Global, store: &Store, contexts: &Contexts, name: &str) -> Option<ContextShape> {
    let context = contexts.contexts.get(name)?;
    let key = || {
        let key = context.api_key.as_ref()?;
        Some(format!("API key {}", key_id(key.expose_secret()).unwrap_or("of an unknown form")))
    };
    let session = context.tokens.as_ref().map(|tokens| format!("session of {}", tokens.email));
    Some(ContextShape {
        name: name.to_owned(),
        current: contexts.chosen(global).as_deref() == Some(name),
        grpc: context.grpc.clone(),
        http: context.http.clone(),
        mcp: context.mcp.clone(),
        tenant: context.tenant.clone(),
        credential: session.or_else(key).unwrap_or_else(|| "none".to_owned()),
        file: store.path().display().to_string(),
    })
}

//! `user …` and `service-account …`: people and programs, and the sessions of people.

use std::time::Duration;

use clap::Subcommand;
use waffles_proto::auth::v1 as pb;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::moment;
use crate::output::shape::{Account, PasswordToken, Session};
use crate::output::{note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Invite a user. The token with which a password is set is shown this once.
    Add {
        /// The e-mail address.
        email: String,
        /// What people call the user.
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// How long the token is good: at most a day, which is the default.
        #[arg(long, value_name = "SPAN", value_parser = moment::span)]
        valid_for: Option<Duration>,
    },
    /// List users.
    List {
        /// Deactivated ones too.
        #[arg(long)]
        all: bool,
    },
    /// Show a user, with its groups and roles.
    Get {
        /// The user's e-mail address or id.
        user: String,
    },
    /// Deactivate a user: its sessions end, and its keys are refused within a second.
    Deactivate {
        /// The user's e-mail address or id.
        user: String,
    },
    /// Take a user up again. Its keys are good again then, its sessions are not.
    Reactivate {
        /// The user's e-mail address or id.
        user: String,
    },
    /// Make a token with which a user sets a new password once. It is shown this once.
    ResetPassword {
        /// The user's e-mail address or id.
        user: String,
        /// How long the token is good: at most a day, which is the default.
        #[arg(long, value_name = "SPAN", value_parser = moment::span)]
        valid_for: Option<Duration>,
    },
    /// List the sessions of a user.
    Sessions {
        /// The user's e-mail address or id; your own without it.
        user: Option<String>,
    },
    /// End one session, or all sessions of a user. Their tokens are refused within a second.
    RevokeSessions {
        /// The user's e-mail address or id; your own without it.
        #[arg(conflicts_with = "session")]
        user: Option<String>,
        /// Only this session; may be repeated.
        #[arg(long, value_name = "ID")]
        session: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceAccountCommand {
    /// Make a service account. Make a key for it with `key create --for`.
    Add {
        /// Its name: a DNS label, never changed.
        name: String,
        /// What people call it.
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
    },
    /// List service accounts.
    List {
        /// Deactivated ones too.
        #[arg(long)]
        all: bool,
    },
    /// Show a service account, with its groups and roles.
    Get {
        /// Its name or id.
        name: String,
    },
    /// Deactivate a service account: its keys are refused within a second.
    Deactivate {
        /// Its name or id.
        name: String,
    },
    /// Take a service account up again, with its keys.
    Reactivate {
        /// Its name or id.
        name: String,
    },
}

/// `user …`.
pub(crate) async fn run(global: &Global, command: UserCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut people = client.people();
    match command {
        UserCommand::Add { email, display_name, valid_for } => {
            let display_name = display_name.unwrap_or_default();
            let request = pb::CreateUserRequest { email, display_name, valid_for: span(valid_for)? };
            let answer = people.create_user(request).await.map_err(Failure::from)?.into_inner();
            let user = Account::from(answer.user.unwrap_or_default());
            print(global.output, &user.with_token(answer.password_token.unwrap_or_default()))?;
            note("Give the token to the user, who sets a password with `wafflectl passwd --token-stdin`.");
            Ok(())
        }
        UserCommand::List { all } => {
            let mut users = Vec::new();
            let mut cursor = String::new();
            loop {
                let request = pb::ListUsersRequest { page_size: 500, cursor, include_inactive: all };
                let page = people.list_users(request).await.map_err(Failure::from)?.into_inner();
                users.extend(page.users.into_iter().map(Account::from));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return print(global.output, users.as_slice());
                }
            }
        }
        UserCommand::Get { user } => {
            let answer = people.get_user(pb::GetUserRequest { user }).await.map_err(Failure::from)?;
            print(global.output, &Account::from(answer.into_inner().user.unwrap_or_default()))
        }
        UserCommand::Deactivate { user } => set_active(global, &client, user, false).await,
        UserCommand::Reactivate { user } => set_active(global, &client, user, true).await,
        UserCommand::ResetPassword { user, valid_for } => {
            let request = pb::CreatePasswordTokenRequest { user, valid_for: span(valid_for)? };
            let answer = people.create_password_token(request).await.map_err(Failure::from)?.into_inner();
            print(global.output, &PasswordToken::from(answer.password_token.unwrap_or_default()))?;
            note("Give the token to the user, who sets a password with `wafflectl passwd --token-stdin`.");
            Ok(())
        }
        UserCommand::Sessions { user } => {
            let request = pb::ListSessionsRequest { user: user.unwrap_or_default() };
            let answer = people.list_sessions(request).await.map_err(Failure::from)?.into_inner();
            let sessions: Vec<Session> = answer.sessions.into_iter().map(Session::from).collect();
            print(global.output, sessions.as_slice())
        }
        UserCommand::RevokeSessions { user, session } if session.is_empty() => {
            let request = pb::RevokeSessionsRequest { user: user.unwrap_or_default() };
            let answer = people.revoke_sessions(request).await.map_err(Failure::from)?.into_inner();
            note(&format!("{} sessions were ended.", answer.revoked));
            Ok(())
        }
        UserCommand::RevokeSessions { session, .. } => {
            for id in session {
                people.revoke_session(pb::RevokeSessionRequest { id }).await.map_err(Failure::from)?;
            }
            Ok(())
        }
    }
}

async fn set_active(global: &Global, client: &Client, user: String, active: bool) -> anyhow::Result<()> {
    let request = pb::SetUserActiveRequest { user, active };
    let answer = client.people().set_user_active(request).await.map_err(Failure::from)?.into_inner();
    print(global.output, &Account::from(answer.user.unwrap_or_default()))
}

/// `service-account …`.
pub(crate) async fn run_service(global: &Global, command: ServiceAccountCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut people = client.people();
    let account = match command {
        ServiceAccountCommand::Add { name, display_name } => {
            let display_name = display_name.unwrap_or_default();
            let request = pb::CreateServiceAccountRequest { name, display_name };
            people.create_service_account(request).await.map_err(Failure::from)?.into_inner().service_account
        }
        ServiceAccountCommand::List { all } => {
            let mut accounts = Vec::new();
            let mut cursor = String::new();
            loop {
                let request =
                    pb::ListServiceAccountsRequest { page_size: 500, cursor, include_inactive: all };
                let page = people.list_service_accounts(request).await.map_err(Failure::from)?.into_inner();
                accounts.extend(page.service_accounts.into_iter().map(Account::from));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return print(global.output, accounts.as_slice());
                }
            }
        }
        ServiceAccountCommand::Get { name } => {
            let request = pb::GetServiceAccountRequest { service_account: name };
            people.get_service_account(request).await.map_err(Failure::from)?.into_inner().service_account
        }
        ServiceAccountCommand::Deactivate { name } => service_active(&client, name, false).await?,
        ServiceAccountCommand::Reactivate { name } => service_active(&client, name, true).await?,
    };
    print(global.output, &Account::from(account.unwrap_or_default()))
}

async fn service_active(client: &Client, name: String, active: bool) -> anyhow::Result<Option<pb::Account>> {
    let request = pb::SetServiceAccountActiveRequest { service_account: name, active };
    let answer = client.people().set_service_account_active(request).await.map_err(Failure::from)?;
    Ok(answer.into_inner().service_account)
}

fn span(span: Option<Duration>) -> anyhow::Result<Option<prost_types::Duration>> {
    Ok(span.map(prost_types::Duration::try_from).transpose()?)
}

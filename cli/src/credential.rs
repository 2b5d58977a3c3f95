//! `credential …`: the keys that credentials of servers, and everything else that is secret, are sealed with.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::time::Instant;
use waffles_proto::secret::v1::{ListKeysRequest, RotateKeysRequest};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::shape::SealKey;
use crate::output::{note, print};

/// How often and how long `--wait` looks.
const PAUSE: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(600);

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialCommand {
    /// Show the keys that secrets are sealed with, and how far a rotation has come.
    Keys,
    /// Make new keys. They take over within seconds, all that is secret in the database is sealed anew, and the old ones
    /// are forgotten when nothing needs them.
    RotateKey {
        /// Wait until everything in the database is sealed with the new key and the old one is forgotten.
        #[arg(long)]
        wait: bool,
    },
}

/// `credential …`.
pub(crate) async fn run(global: &Global, command: CredentialCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    match command {
        CredentialCommand::Keys => print(global.output, list(&client).await?.as_slice()),
        CredentialCommand::RotateKey { wait } => {
            let answer = client.secrets().rotate_keys(RotateKeysRequest {}).await.map_err(Failure::from)?;
            let mut keys: Vec<SealKey> = answer.into_inner().keys.into_iter().map(SealKey::from).collect();
            if wait {
                keys = until_done(&client).await?;
            } else {
                note("The rotation has begun; `wafflectl credential keys` tells how far it has come.");
            }
            print(global.output, keys.as_slice())
        }
    }
}

async fn list(client: &Client) -> anyhow::Result<Vec<SealKey>> {
    let answer = client.secrets().list_keys(ListKeysRequest {}).await.map_err(Failure::from)?;
    Ok(answer.into_inner().keys.into_iter().map(SealKey::from).collect())
}

async fn until_done(client: &Client) -> anyhow::Result<Vec<SealKey>> {
    let wait = async {
        loop {
            let keys = list(client).await?;
            if keys.iter().all(SealKey::is_settled) {
                return Ok(keys);
            }
            tokio::time::sleep_until(Instant::now() + PAUSE).await;
        }
    };
    tokio::time::timeout(MOST, wait)
        .await
        .context("the rotation goes on, but this took too long to wait for")?
}

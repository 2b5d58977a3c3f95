//! `tenant …`: what those do who run the whole Waffles. A tenant's own admins never meet it.

use clap::{Args, Subcommand};
use waffles_proto::tenant::v1::{
    CreateTenantRequest, GetTenantRequest, ListTenantsRequest, ResumeTenantRequest, SetTenantLimitsRequest,
    SuspendTenantRequest, TenantLimits,
};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::shape::Tenant;
use crate::output::{note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant with its first admin, who sets a password with a token that is shown this once.
    Add {
        /// Its id: a DNS label, never changed.
        id: String,
        /// The e-mail address of its first admin.
        #[arg(long, value_name = "ADDRESS")]
        admin: String,
        /// Free text.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List tenants.
    List,
    /// Show a tenant, and how much there is in it.
    Get {
        /// Its id.
        id: String,
    },
    /// Have everybody of a tenant refused everywhere, within a second.
    Suspend {
        /// Its id.
        id: String,
    },
    /// Let everybody of a suspended tenant in again.
    Resume {
        /// Its id.
        id: String,
    },
    /// Change what a tenant may have. What is not named stays as it is.
    Limits {
        /// Its id.
        id: String,
        #[command(flatten)]
        limits: LimitArgs,
    },
}

/// How much a tenant may have.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LimitArgs {
    /// Registered servers: a number, or `none` for as many as one likes.
    #[arg(long, value_name = "N", value_parser = limit)]
    servers: Option<Limit>,
    /// Active users and service accounts, in the same way.
    #[arg(long, value_name = "N", value_parser = limit)]
    principals: Option<Limit>,
    /// API keys that may still be used, in the same way.
    #[arg(long, value_name = "N", value_parser = limit)]
    keys: Option<Limit>,
}

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => {
            number.parse().map(|most| Limit(Some(most))).map_err(|_| "give a number or `none`".to_owned())
        }
    }
}

impl LimitArgs {
    fn is_empty(self) -> bool {
        self.servers.is_none() && self.principals.is_none() && self.keys.is_none()
    }

    /// Changes what the flags name.
    fn apply(self, limits: &mut TenantLimits) {
        for (given, limit) in [
            (self.servers, &mut limits.max_servers),
            (self.principals, &mut limits.max_principals),
            (self.keys, &mut limits.max_api_keys),
        ] {
            if let Some(Limit(most)) = given {
                *limit = most;
            }
        }
    }
}

/// `tenant …`.
pub(crate) async fn run(global: &Global, command: TenantCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut tenants = client.tenants();
    let tenant = match command {
        TenantCommand::Add { id, admin, description, limits } => {
            let request = CreateTenantRequest {
                id: id.clone(),
                description: description.unwrap_or_default(),
                admin_email: admin,
                limits: None,
            };
            let answer = tenants.create_tenant(request).await.map_err(Failure::from)?.into_inner();
            let mut made = answer.tenant.clone();
            // Without a word about limits the control plane's own are in force; those that are named change them.
            if !limits.is_empty() {
                let mut wanted = made.as_ref().and_then(|tenant| tenant.limits).unwrap_or_default();
                limits.apply(&mut wanted);
                let request = SetTenantLimitsRequest { id, limits: Some(wanted) };
                made = tenants.set_tenant_limits(request).await.map_err(Failure::from)?.into_inner().tenant;
            }
            let shape = Tenant::from(made.unwrap_or_default()).with_admin(answer);
            print(global.output, &shape)?;
            note("Give the token to the admin now, it is not shown again: it sets the password.");
            return Ok(());
        }
        TenantCommand::List => {
            let mut found = Vec::new();
            let mut cursor = String::new();
            loop {
                let request = ListTenantsRequest { page_size: 500, cursor };
                let page = tenants.list_tenants(request).await.map_err(Failure::from)?.into_inner();
                found.extend(page.tenants.into_iter().map(Tenant::from));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return print(global.output, found.as_slice());
                }
            }
        }
        TenantCommand::Get { id } => {
            let answer =
                tenants.get_tenant(GetTenantRequest { id }).await.map_err(Failure::from)?.into_inner();
            let shape = Tenant::from(answer.tenant.unwrap_or_default());
            return print(global.output, &shape.with_usage(answer.usage.unwrap_or_default()));
        }
        TenantCommand::Suspend { id } => {
            let answer = tenants.suspend_tenant(SuspendTenantRequest { id }).await;
            answer.map_err(Failure::from)?.into_inner().tenant
        }
        TenantCommand::Resume { id } => {
            let answer = tenants.resume_tenant(ResumeTenantRequest { id }).await;
            answer.map_err(Failure::from)?.into_inner().tenant
        }
        TenantCommand::Limits { id, limits } => {
            if limits.is_empty() {
                return Err(Failure::usage("no limit is named")
                    .next("Name one: --servers, --principals or --keys, with a number or `none`.")
                    .into());
            }
            let request = GetTenantRequest { id: id.clone() };
            let before = tenants.get_tenant(request).await.map_err(Failure::from)?.into_inner().tenant;
            let mut wanted = before.and_then(|tenant| tenant.limits).unwrap_or_default();
            limits.apply(&mut wanted);
            let answer = tenants.set_tenant_limits(SetTenantLimitsRequest { id, limits: Some(wanted) }).await;
            answer.map_err(Failure::from)?.into_inner().tenant
        }
    };
    print(global.output, &Tenant::from(tenant.unwrap_or_default()))
}

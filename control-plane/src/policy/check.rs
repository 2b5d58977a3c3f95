//! Rules against what is known of the tenant: the names in them, and the arguments that conditions look at.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use waffles_core::policy::{Inspector, Names, Notice, Role, RuleSpec, Tool};
use waffles_core::server::{Marks, Spec};

use super::Policy;
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::accounts::{self, Named};
use crate::store::{grants, groups, namespaces, servers, tools};

/// Tools whose schemas are in memory at the same time.
const TOOLS: u32 = 200;
/// Groups and principals that are looked for; of more it is not said which are missing.
const MOST_HOLDERS: usize = 500;
/// Servers and namespaces a page.
const PAGE: u32 = 500;

impl Policy {
    /// What may not be meant with rules that are sound; an error names everything that is wrong. Only the rules that
    /// `is_new` names are looked at.
    pub(super) async fn checked(
        &self,
        ctx: &OpCtx,
        rules: &[RuleSpec],
        is_new: impl Fn(&RuleSpec) -> bool,
    ) -> Result<Vec<Notice>, Error> {
        let mut inspector = Inspector::new(rules, &is_new);
        let mut around = self.around(ctx).await?;
        self.find_holders(ctx, rules.iter().filter(|spec| is_new(spec)), &mut around.names).await?;
        inspector.names(&around.names, &is_new);
        if inspector.reads_arguments() {
            self.show_tools(ctx, &around, &mut inspector).await?;
        }
        let found = inspector.finish();
        if found.errors.is_empty() { Ok(found.notices) } else { Err(Error::Invalid(found.errors)) }
    }

    async fn show_tools(
        &self,
        ctx: &OpCtx,
        around: &Around,
        inspector: &mut Inspector<'_>,
    ) -> Result<(), Error> {
        let db = self.db.of(ctx.tenant());
        let (mut listed, mut after) = (BTreeSet::new(), (String::new(), String::new()));
        loop {
            let rows = tools::of_tenant(&db, ctx.tenant(), (&after.0, &after.1), TOOLS).await?;
            let Some(last) = rows.last() else { break };
            after = (last.server.clone(), last.name.clone());
            for row in rows {
                let schema = serde_json::from_str::<Value>(&row.input_schema).ok();
                let server = around.servers.get(&row.server);
                inspector.tool(&Tool {
                    server: &row.server,
                    namespaces: around.namespaces_of(&row.server),
                    name: &row.name,
                    marks: server.map_or_else(Marks::default, |spec| spec.marks_of(&row.name)),
                    schema: schema.as_ref(),
                });
                listed.insert(row.server);
            }
        }
        for server in around.servers.keys().filter(|server| !listed.contains(*server)) {
            inspector.unlisted(server, around.namespaces_of(server));
        }
        Ok(())
    }

    /// Which of the roles, groups and principals that rules name there are.
    async fn find_holders(
        &self,
        ctx: &OpCtx,
        rules: impl Iterator<Item = &RuleSpec>,
        names: &mut Names,
    ) -> Result<(), Error> {
        let (mut groups, mut principals) = (BTreeSet::new(), BTreeSet::new());
        for spec in rules {
            groups.extend(&spec.principals.groups);
            principals.extend(&spec.principals.names);
        }
        let db = self.db.of(ctx.tenant());
        let built_in = Role::ALL.into_iter().map(|role| role.as_str().to_owned());
        let own = grants::roles(&db, ctx.tenant()).await?.into_iter().map(|role| role.role.name);
        names.roles = Some(built_in.chain(own).collect());
        let mut tx = db.begin_read().await?;
        if groups.len() <= MOST_HOLDERS {
            let mut found = BTreeSet::new();
            for name in groups {
                found.extend(groups::find(&mut tx, ctx.tenant(), name).await?.map(|group| group.name));
            }
            names.groups = Some(found);
        }
        if principals.len() <= MOST_HOLDERS {
            let mut found = BTreeSet::new();
            for name in principals {
                let account = accounts::find(&mut tx, ctx.tenant(), None, &Named::Name(name.clone())).await?;
                found.extend(account.map(|account| account.principal.name));
            }
            names.principals = Some(found);
        }
        Ok(())
    }

    async fn around(&self, ctx: &OpCtx) -> Result<Around, Error> {
        let (db, tenant) = (self.db.of(ctx.tenant()), ctx.tenant());
        let mut around = Around::default();
        let mut after: Option<String> = None;
        loop {
            let filter = servers::ServerFilter::default();
            let rows = servers::list(&db, tenant, &filter, None, after.as_deref(), PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.name().to_owned());
            for row in rows {
                match row.described() {
                    Ok(server) => {
                        around.servers.insert(server.spec.name.clone(), server.spec);
                    }
                    Err(broken) => {
                        tracing::warn!(error = %broken, "a server is left out of a check of rules")
                    }
                }
            }
        }
        let mut names = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let filter = namespaces::NamespaceFilter::default();
            let found = namespaces::list(&db, tenant, &filter, after.as_deref(), PAGE).await?;
            let Some(last) = found.last() else { break };
            after = Some(last.spec.name.clone());
            for namespace in found {
                for member in namespace.spec.servers {
                    around.members.entry(member.server).or_default().push(namespace.spec.name.clone());
                }
                names.insert(namespace.spec.name);
            }
        }
        around.names.servers = Some(around.servers.keys().cloned().collect());
        around.names.namespaces = Some(names);
        Ok(around)
    }
}

/// What is known of a tenant.
#[derive(Debug, Default)]
struct Around {
    names: Names,
    servers: BTreeMap<String, Spec>,
    /// The namespaces of each server.
    members: HashMap<String, Vec<String>>,
}

impl Around {
    fn namespaces_of(&self, server: &str) -> &[String] {
        self.members.get(server).map(Vec::as_slice).unwrap_or_default()
    }
}

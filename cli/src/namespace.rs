//! `namespace …`: named sets of servers behind one door, what they show of each, and who may go how far there.

use clap::{Args, Subcommand, ValueEnum};
use waffles_proto::registry::v1::{
    AddServerRequest, CreateNamespaceRequest, DeleteNamespaceRequest, Expose, GetNamespaceRequest, Level,
    ListNamespacesRequest, NamespaceMember, NamespaceSpec, PrincipalLevel, RemoveServerRequest, RoleLevel,
    UpdateNamespaceRequest,
};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::shape::Namespace;
use crate::output::{note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// List namespaces.
    List {
        /// Only namespaces whose name contains this.
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Only namespaces that this server is a member of.
        #[arg(long, value_name = "SERVER")]
        server: Option<String>,
    },
    /// Show a namespace, with its servers and levels.
    Get {
        /// Its name.
        name: String,
    },
    /// Make a namespace.
    Add {
        /// Its name: a DNS label, never changed.
        name: String,
        #[command(flatten)]
        spec: SpecArgs,
    },
    /// Change a namespace. What is not named stays as it is; a list that is named is replaced.
    Edit {
        /// Its name.
        name: String,
        #[command(flatten)]
        spec: SpecArgs,
        /// Empty this field; may be repeated.
        #[arg(long, value_name = "FIELD")]
        clear: Vec<Field>,
        /// Refuse when the namespace is not at this version any more.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Remove a namespace. Its servers stay.
    Remove {
        /// Its name.
        name: String,
    },
    /// Take a server into a namespace, or change how a member is shown there.
    AddServer {
        /// The namespace's name.
        name: String,
        #[command(flatten)]
        member: MemberArgs,
    },
    /// Take a server out of a namespace.
    RemoveServer {
        /// The namespace's name.
        name: String,
        /// The server's name.
        server: String,
    },
}

/// What can be said about a namespace.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// Free text.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A server in it; may be repeated. One that is a member stays as it is shown.
    #[arg(long, value_name = "SERVER")]
    server: Vec<String>,
    /// How far the holders of a role may go, such as `user=execute` or `readonly=view`; may be repeated.
    #[arg(long, value_name = "ROLE=LEVEL", value_parser = grant)]
    role: Vec<(String, Level)>,
    /// How far one principal may go, such as `alice@example.com=view`; may be repeated.
    #[arg(long, value_name = "NAME=LEVEL", value_parser = grant)]
    principal: Vec<(String, Level)>,
    /// Whether every server that is registered from now on joins it.
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true")]
    takes_new: Option<bool>,
    /// Whether it shows tools to search and to call with, in place of all tools of its servers.
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true")]
    tool_search: Option<bool>,
}

/// How a server is shown.
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    /// The server's name.
    server: String,
    /// Show its names without `SERVER__` before them, where no other server has the same.
    #[arg(long)]
    no_prefix: bool,
    /// A tool or prompt that is shown, as name or `*` pattern; may be repeated. Without it: all.
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// A tool or prompt that is not shown; may be repeated, and wins.
    #[arg(long, value_name = "PATTERN")]
    deny: Vec<String>,
    /// A resource or template that is shown, as URI or `*` pattern; may be repeated. Without it: all.
    #[arg(long, value_name = "PATTERN")]
    allow_resource: Vec<String>,
    /// A resource or template that is not shown; may be repeated, and wins.
    #[arg(long, value_name = "PATTERN")]
    deny_resource: Vec<String>,
}

/// What `edit --clear` can empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Field {
    /// No description.
    Description,
    /// No servers.
    Servers,
    /// No level of any role.
    Roles,
    /// No level of any principal.
    Principals,
}

fn grant(text: &str) -> Result<(String, Level), String> {
    let wrong = || "give a name and a level, view or execute, such as user=execute".to_owned();
    let (name, level) = text.rsplit_once('=').ok_or_else(wrong)?;
    let level = match level {
        "view" => Level::View,
        "execute" => Level::Execute,
        _ => return Err(wrong()),
    };
    if name.is_empty() { Err(wrong()) } else { Ok((name.to_owned(), level)) }
}

impl SpecArgs {
    /// Changes what the flags name.
    fn apply(self, spec: &mut NamespaceSpec) {
        if let Some(description) = self.description {
            spec.description = description;
        }
        if !self.server.is_empty() {
            let mut present = std::mem::take(&mut spec.servers);
            spec.servers = self
                .server
                .into_iter()
                .map(|server| match present.iter().position(|member| member.server == server) {
                    Some(at) => present.swap_remove(at),
                    None => NamespaceMember { server, ..NamespaceMember::default() },
                })
                .collect();
        }
        if !self.role.is_empty() {
            let level = |(role, level): (String, Level)| RoleLevel { role, level: level.into() };
            spec.levels = self.role.into_iter().map(level).collect();
        }
        if !self.principal.is_empty() {
            let level =
                |(principal, level): (String, Level)| PrincipalLevel { principal, level: level.into() };
            spec.principals = self.principal.into_iter().map(level).collect();
        }
        spec.is_default = self.takes_new.unwrap_or(spec.is_default);
        spec.tool_search = self.tool_search.unwrap_or(spec.tool_search);
    }
}

impl From<MemberArgs> for NamespaceMember {
    fn from(args: MemberArgs) -> Self {
        let expose = Expose {
            allow: args.allow,
            deny: args.deny,
            resources_allow: args.allow_resource,
            resources_deny: args.deny_resource,
        };
        Self { server: args.server, prefix: Some(!args.no_prefix), expose: Some(expose) }
    }
}

fn clear(spec: &mut NamespaceSpec, field: Field) {
    match field {
        Field::Description => spec.description.clear(),
        Field::Servers => spec.servers.clear(),
        Field::Roles => spec.levels.clear(),
        Field::Principals => spec.principals.clear(),
    }
}

/// `namespace …`.
pub(crate) async fn run(global: &Global, command: NamespaceCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut namespaces = client.namespaces();
    let namespace = match command {
        NamespaceCommand::List { name, server } => {
            let (name_contains, server) = (name.unwrap_or_default(), server.unwrap_or_default());
            let mut request =
                ListNamespacesRequest { name_contains, server, page_size: 500, ..Default::default() };
            let mut found: Vec<Namespace> = Vec::new();
            loop {
                let page =
                    namespaces.list_namespaces(request.clone()).await.map_err(Failure::from)?.into_inner();
                found.extend(page.namespaces.into_iter().map(Namespace::from));
                request.cursor = page.next_cursor;
                if request.cursor.is_empty() {
                    return print(global.output, found.as_slice());
                }
            }
        }
        NamespaceCommand::Get { name } => {
            let request = GetNamespaceRequest { name };
            namespaces.get_namespace(request).await.map_err(Failure::from)?.into_inner().namespace
        }
        NamespaceCommand::Add { name, spec: args } => {
            let mut spec = NamespaceSpec { name, ..NamespaceSpec::default() };
            args.apply(&mut spec);
            let request = CreateNamespaceRequest { spec: Some(spec) };
            namespaces.create_namespace(request).await.map_err(Failure::from)?.into_inner().namespace
        }
        NamespaceCommand::Edit { name, spec: args, clear: fields, version } => {
            let request = GetNamespaceRequest { name };
            let answer = namespaces.get_namespace(request).await.map_err(Failure::from)?.into_inner();
            let namespace = answer.namespace.unwrap_or_default();
            let mut spec = namespace.spec.unwrap_or_default();
            fields.into_iter().for_each(|field| clear(&mut spec, field));
            args.apply(&mut spec);
            let version = version.unwrap_or(namespace.version);
            let request = UpdateNamespaceRequest { spec: Some(spec), version };
            namespaces.update_namespace(request).await.map_err(Failure::from)?.into_inner().namespace
        }
        NamespaceCommand::Remove { name } => {
            let request = DeleteNamespaceRequest { name: name.clone() };
            namespaces.delete_namespace(request).await.map_err(Failure::from)?;
            note(&format!("Namespace {name} is removed."));
            return Ok(());
        }
        NamespaceCommand::AddServer { name, member } => {
            let request = AddServerRequest { namespace: name, member: Some(member.into()) };
            namespaces.add_server(request).await.map_err(Failure::from)?.into_inner().namespace
        }
        NamespaceCommand::RemoveServer { name, server } => {
            let request = RemoveServerRequest { namespace: name, server };
            namespaces.remove_server(request).await.map_err(Failure::from)?.into_inner().namespace
        }
    };
    print(global.output, &Namespace::from(namespace.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(server: &str, prefix: bool) -> NamespaceMember {
        NamespaceMember { server: server.to_owned(), prefix: Some(prefix), expose: None }
    }

    fn none() -> SpecArgs {
        SpecArgs {
            description: None,
            server: Vec::new(),
            role: Vec::new(),
            principal: Vec::new(),
            takes_new: None,
            tool_search: None,
        }
    }

    #[test]
    fn a_level_is_given_after_the_last_sign() {
        assert_eq!(grant("user=execute"), Ok(("user".to_owned(), Level::Execute)));
        assert_eq!(grant("a=b@example.com=view"), Ok(("a=b@example.com".to_owned(), Level::View)));
        for wrong in ["user", "user=", "=view", "user=all"] {
            assert!(grant(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_named_stays_and_a_member_stays_as_it_is_shown() {
        let mut spec = NamespaceSpec {
            servers: vec![member("a", false), member("b", true)],
            is_default: true,
            description: "old".to_owned(),
            ..NamespaceSpec::default()
        };
        let before = spec.clone();
        none().apply(&mut spec);
        assert_eq!(spec, before);
        let args = SpecArgs { server: vec!["c".into(), "a".into()], takes_new: Some(false), ..none() };
        args.apply(&mut spec);
        let fresh = NamespaceMember { server: "c".to_owned(), ..NamespaceMember::default() };
        assert_eq!(spec.servers, [fresh, member("a", false)]);
        assert!(!spec.is_default && spec.description == "old");
        clear(&mut spec, Field::Servers);
        assert!(spec.servers.is_empty());
    }
}

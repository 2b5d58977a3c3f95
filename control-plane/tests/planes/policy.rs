//! Rules are saved in versions, checked against what tools take, explained and tried out; and each tenant has its own.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Connection as _;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;
use waffles_control_plane::authz::OpCtx;
use waffles_control_plane::discovery::Discovery;
use waffles_control_plane::page::Page;
use waffles_control_plane::policy::{About, Draft, Imagined, Policy, Trial};
use waffles_control_plane::store::{Db, DbConfig, principals};
use waffles_core::audit::{Event, Outcome, micros};
use waffles_core::policy::RuleSpec;
use waffles_core::principal::Principal;
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::auth::v1 as auth_pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::discovery::v1 as discovery_pb;
use waffles_proto::policy::v1 as pb;
use waffles_proto::policy::v1::policy_service_client::PolicyServiceClient;
use waffles_proto::registry::v1 as registry_pb;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;

use super::audit::Upload;
use super::discovery::{Proxy, create};
use super::enrolled::Enrolled;
use super::{Database, Operator, Plane, eventually, spec};

/// An operator at the policy.
#[derive(Clone)]
struct Desk {
    who: Operator,
    client: PolicyServiceClient<Channel>,
}

impl Desk {
    fn of(who: &Operator) -> Self {
        Self { who: who.clone(), client: PolicyServiceClient::new(who.channel.clone()) }
    }

    async fn create(&self, spec: pb::RuleSpec, comment: &str) -> Result<pb::CreateRuleResponse, Status> {
        let request = pb::CreateRuleRequest { spec: Some(spec), comment: comment.into() };
        self.client.clone().create_rule(self.who.ask(request)).await.map(tonic::Response::into_inner)
    }

    async fn update(&self, spec: pb::RuleSpec, version: u64) -> Result<pb::PolicyRule, Status> {
        let request = pb::UpdateRuleRequest { spec: Some(spec), version, comment: "update".into() };
        let answer = self.client.clone().update_rule(self.who.ask(request)).await?;
        Ok(answer.into_inner().rule.unwrap())
    }

    async fn replace(
        &self,
        rules: Vec<pb::RuleSpec>,
        version: u64,
    ) -> Result<pb::ReplaceRulesResponse, Status> {
        let request = pb::ReplaceRulesRequest { rules, version, comment: "replace".into() };
        self.client.clone().replace_rules(self.who.ask(request)).await.map(tonic::Response::into_inner)
    }

    async fn remove(&self, name: &str) -> Result<u64, Status> {
        let request = pb::DeleteRuleRequest { name: name.into(), comment: "remove".into() };
        Ok(self.client.clone().delete_rule(self.who.ask(request)).await?.into_inner().version)
    }

    async fn list(&self) -> pb::ListRulesResponse {
        let request = pb::ListRulesRequest::default();
        self.client.clone().list_rules(self.who.ask(request)).await.unwrap().into_inner()
    }

    async fn names(&self) -> Vec<String> {
        self.list().await.rules.into_iter().map(|rule| rule.spec.unwrap().name).collect()
    }

    async fn version(&self, version: u64) -> Result<pb::GetVersionResponse, Status> {
        let request = pb::GetVersionRequest { version };
        self.client.clone().get_version(self.who.ask(request)).await.map(tonic::Response::into_inner)
    }

    async fn explain(&self, about: pb::explain_request::About) -> Result<pb::ExplainResponse, Status> {
        let request = pb::ExplainRequest { about: Some(about) };
        self.client.clone().explain(self.who.ask(request)).await.map(tonic::Response::into_inner)
    }
}

fn forbid(name: &str, servers: &[&str], tools: &[&str]) -> pb::RuleSpec {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    pb::RuleSpec {
        name: name.into(),
        effect: pb::Effect::Forbid.into(),
        items: Some(pb::What { servers: texts(servers), tools: texts(tools), ..Default::default() }),
        ..Default::default()
    }
}

fn rules_of(update: &super::discovery::Update) -> BTreeSet<String> {
    let rule = |resource: &discovery_pb::Resource| match resource.kind.as_ref()? {
        discovery_pb::resource::Kind::Rule(rule) => Some(rule.spec.as_ref()?.name.clone()),
        _ => None,
    };
    update.resources.iter().filter_map(rule).collect()
}

fn fields(status: &Status) -> Vec<(String, String)> {
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap().field_violations;
    violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_have_versions_and_a_way_back() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut proxy = Proxy::connect(&plane, discovery_pb::Hello::default()).await;
        let first = proxy.update().await;
        proxy.ack(&first).await;
        versions(&Desk::of(&admin), &mut proxy).await;
        plane.stop().await;
        // What is stored is what is published by a control plane that starts anew.
        let plane = Plane::start(&database).await;
        let mut other = Proxy::connect(&plane, discovery_pb::Hello::default()).await;
        assert_eq!(rules_of(&other.update().await), ["no-deletes".to_owned()].into());
        drop((proxy, other));
        plane.stop().await;
        database.drop().await;
    }
}

async fn versions(desk: &Desk, proxy: &mut Proxy) {
    assert_eq!((desk.names().await.len(), desk.list().await.version), (0, 0));
    let made = desk.create(forbid("no-deletes", &[], &["delete_*"]), "after the incident").await.unwrap();
    let rule = made.rule.unwrap();
    assert_eq!(rule.version, 1);
    let update = proxy.update().await;
    assert_eq!(rules_of(&update), ["no-deletes".to_owned()].into());
    proxy.ack(&update).await;

    let taken = desk.create(forbid("no-deletes", &[], &[]), "").await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    let wide = forbid("no-deletes", &[], &["delete_*", "drop_*"]);
    assert_eq!(desk.update(wide.clone(), 1).await.unwrap().version, 2);
    let update = proxy.update().await;
    proxy.ack(&update).await;
    desk.create(forbid("no-maps", &["maps"], &[]), "").await.unwrap();
    let update = proxy.update().await;
    proxy.ack(&update).await;
    assert_eq!(desk.names().await, ["no-deletes", "no-maps"]);
    // Nothing differs, so nothing is saved.
    assert_eq!(desk.update(wide.clone(), 2).await.unwrap().version, 2);

    let request = pb::ListVersionsRequest::default();
    let listed =
        desk.client.clone().list_versions(desk.who.ask(request)).await.unwrap().into_inner().versions;
    assert_eq!(listed.iter().map(|v| v.version).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(
        (listed[2].comment.as_str(), listed[2].author.as_str()),
        ("after the incident", "admin@localhost")
    );
    assert!(listed[0].revision > listed[1].revision && listed[1].revision > listed[2].revision);
    let at = desk.version(1).await.unwrap();
    assert_eq!(at.rules.len(), 1);
    assert_eq!(at.rules[0].items.as_ref().unwrap().tools, ["delete_*"]);
    assert_eq!(desk.version(9).await.unwrap_err().code(), Code::NotFound);
    let request = pb::CompareVersionsRequest { from: 1, to: 0 };
    let differs =
        desk.client.clone().compare_versions(desk.who.ask(request)).await.unwrap().into_inner().changes;
    assert_eq!(
        differs.iter().map(|change| change.name.as_str()).collect::<Vec<_>>(),
        ["no-deletes", "no-maps"]
    );
    assert!(differs[0].before.is_some() && differs[1].before.is_none());

    let request = pb::RollbackRequest { to: 1, version: 2, comment: String::new() };
    let stale = desk.client.clone().rollback(desk.who.ask(request.clone())).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    let request = pb::RollbackRequest { version: 3, comment: "too wide".into(), ..request };
    let back = desk.client.clone().rollback(desk.who.ask(request)).await.unwrap().into_inner();
    assert_eq!((back.version, back.changes.len()), (4, 2));
    let latest = desk.version(0).await.unwrap();
    assert_eq!(latest.rules, at.rules);
    let noted = latest.version.unwrap();
    assert_eq!((noted.version, noted.restored, noted.comment.as_str()), (4, 1, "too wide"));
    let update = proxy.update().await;
    assert_eq!(rules_of(&update), ["no-deletes".to_owned()].into());
    assert_eq!(update.removed.len(), 1);
    proxy.ack(&update).await;

    // A rule that comes back is the same rule as before, in the whole history.
    let again = desk.create(forbid("no-maps", &["maps"], &[]), "").await.unwrap().rule.unwrap();
    assert_eq!(again.version, 5);
    assert_eq!(update.removed[0].id, again.id);
    assert_eq!(desk.remove("no-maps").await.unwrap(), 6);
    assert_eq!(desk.remove("no-maps").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_one_is_told_and_nothing_is_lost() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let desk = Desk::of(&plane.sign_in().await);
        desk.create(forbid("one", &[], &["a"]), "").await.unwrap();
        let (left, right) = tokio::join!(
            desk.update(forbid("one", &[], &["b"]), 1),
            desk.update(forbid("one", &[], &["c"]), 1)
        );
        let codes: Vec<Option<Code>> = [&left, &right].map(|r| r.as_ref().err().map(Status::code)).into();
        assert!(codes.contains(&None) && codes.contains(&Some(Code::Aborted)), "{codes:?}");
        // Of different rules both are saved.
        let (left, right) = tokio::join!(
            desk.create(forbid("two", &[], &["a"]), ""),
            desk.create(forbid("three", &[], &["a"]), "")
        );
        assert!(left.is_ok() && right.is_ok(), "{left:?} {right:?}");
        let version = desk.list().await.version;
        let (left, right) = tokio::join!(
            desk.replace(vec![forbid("left", &[], &["a"])], version),
            desk.replace(vec![forbid("right", &[], &["a"])], version)
        );
        assert_eq!(u8::from(left.is_ok()) + u8::from(right.is_ok()), 1, "{left:?} {right:?}");
        assert_eq!(desk.names().await.len(), 1);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_is_held_against_what_the_tools_take() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let desk = Desk::of(&admin);
        create(&admin, "billing").await;
        create(&admin, "unseen").await;
        let (upload, _) = Upload::open(&plane, &Enrolled::new(&plane).await, Uuid::now_v7()).await;
        let request = registry_pb::GetServerRequest { name: "billing".into() };
        let mut registry = RegistryServiceClient::new(admin.channel.clone());
        let server = registry.get_server(admin.ask(request)).await.unwrap().into_inner().server.unwrap();
        let schema = r#"{"type":"object","properties":{"amount":{"type":"number"}}}"#;
        let tool = audit_pb::SeenTool { name: "refund".into(), input_schema: schema.into() };
        let tools = vec![audit_pb::SeenTools { server_id: server.id, tools: vec![tool] }];
        upload.say(audit_pb::Health { tools, ..Default::default() }).await;

        let with = |condition: &str, server: &str| pb::RuleSpec {
            condition: condition.into(),
            ..forbid("big", &[server], &[])
        };
        let check = |spec: pb::RuleSpec| {
            let (mut client, request) =
                (desk.client.clone(), desk.who.ask(pb::CheckRulesRequest { rules: vec![spec] }));
            async move { client.check_rules(request).await.map(|answer| answer.into_inner().warnings) }
        };
        let refused = eventually(|| async { check(with("args.amuont > 100", "billing")).await.err() }).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        let expected =
            ("rules[0].condition".to_owned(), "args.amuont is no argument of billing/refund".to_owned());
        assert_eq!(fields(&refused), [expected]);
        let refused = desk.create(with("args.amuont > 100", "billing"), "").await.unwrap_err();
        assert_eq!(fields(&refused)[0].0, "condition");
        let refused = desk.create(with("args.amount > 'x'", "billing"), "").await.unwrap_err();
        assert_eq!(fields(&refused)[0].0, "condition", "{refused}");
        let refused = desk.create(with("amount > 1", "billing"), "").await.unwrap_err();
        assert_eq!(fields(&refused)[0].0, "condition", "{refused}");
        assert_eq!(check(with("args.amount > 100", "billing")).await.unwrap(), []);
        let warnings = check(with("args.amuont > 100", "unseen")).await.unwrap();
        assert!(warnings[0].message.contains("server unseen"), "{warnings:?}");
        let warnings = check(forbid("later", &["not-yet"], &[])).await.unwrap();
        assert_eq!(warnings[0].field, "items.servers[0]");
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        let who = pb::Who {
            roles: texts(&["user", "usr"]),
            groups: texts(&["nobodies"]),
            names: texts(&["admin@localhost", "eve@test"]),
        };
        let warnings =
            check(pb::RuleSpec { principals: Some(who), ..forbid("whom", &[], &[]) }).await.unwrap();
        let odd: Vec<&str> = warnings.iter().map(|warning| warning.field.as_str()).collect();
        assert_eq!(odd, ["principals.roles[1]", "principals.groups[0]", "principals.names[1]"]);
        let made = desk.create(with("args.amount > 100", "billing"), "").await.unwrap();
        assert_eq!(made.warnings, []);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_use_the_gateway_everywhere_writes_no_rule_that_allows() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let scopes = ["policies:read", "policies:write"].map(str::to_owned).to_vec();
    let limits = auth_pb::KeyLimits { scopes, ..Default::default() };
    let request =
        auth_pb::CreateApiKeyRequest { name: "rules".into(), limits: Some(limits), ..Default::default() };
    let mut identity = AuthServiceClient::new(admin.channel.clone());
    let secret = identity.create_api_key(admin.ask(request)).await.unwrap().into_inner().secret;
    let desk = Desk::of(&Operator { token: secret, channel: admin.channel.clone() });
    desk.create(forbid("no", &[], &["x"]), "").await.unwrap();
    let allow = |name: &str| pb::RuleSpec { effect: pb::Effect::Allow.into(), ..forbid(name, &[], &["x"]) };
    assert_eq!(desk.create(allow("yes"), "").await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(desk.update(allow("no"), 1).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(desk.replace(vec![allow("yes")], 1).await.unwrap_err().code(), Code::PermissionDenied);
    Desk::of(&admin).create(allow("yes"), "").await.unwrap();
    assert_eq!(desk.remove("yes").await.unwrap(), 3);
    let request = pb::RollbackRequest { to: 2, ..Default::default() };
    let refused = desk.client.clone().rollback(desk.who.ask(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "a way back is no way round");
    assert_eq!(desk.names().await, ["no"]);
    plane.stop().await;
}

/// A control plane's database with two users, and a server whose calls are kept whole.
struct World {
    db: Db,
    admin: Operator,
    server: Uuid,
    users: Vec<Principal>,
}

impl World {
    async fn new(database: &Database, plane: &Plane) -> Self {
        let admin = plane.sign_in().await;
        let spec = registry_pb::ServerSpec { capture: registry_pb::Capture::Full.into(), ..spec("billing") };
        let request = registry_pb::CreateServerRequest { spec: Some(spec), disabled: false };
        let mut registry = RegistryServiceClient::new(admin.channel.clone());
        let server = registry.create_server(admin.ask(request)).await.unwrap().into_inner().server.unwrap();
        let db = Db::connect(&DbConfig::new(database.url.clone())).await.unwrap();
        let user = |name: &str| Principal {
            id: Uuid::now_v7(),
            tenant: "default".into(),
            name: name.into(),
            roles: vec!["user".into()],
            active: true,
            ..Principal::default()
        };
        let users = vec![user("ada@test"), user("bob@test")];
        let mut tx = db.everywhere().begin().await.unwrap();
        for user in &users {
            principals::put_user(&mut tx, user, "", Utc::now()).await.unwrap();
        }
        tx.commit().await.unwrap();
        Self { db, admin, server: server.id.parse().unwrap(), users }
    }

    fn call(&self, user: usize, tool: &str, payload: &str, at: DateTime<Utc>) -> Event {
        let user = &self.users[user];
        Event {
            tenant: "default".into(),
            action: "mcp.tools/call".into(),
            principal_id: Some(user.id),
            principal_name: user.name.clone(),
            client_ip: "10.1.2.3".into(),
            protocol_version: "2025-11-25".into(),
            server_id: Some(self.server),
            server_name: "billing".into(),
            target: tool.into(),
            request_payload: payload.into(),
            ..Event::new(Uuid::now_v7(), micros(at))
        }
    }

    async fn store(&self, events: &[Event]) {
        let mut tx = self.db.everywhere().begin().await.unwrap();
        events.iter().for_each(|event| tx.note(event.clone()));
        tx.commit().await.unwrap();
    }

    fn policy(&self) -> Policy {
        Policy::new(self.db.clone(), Discovery::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_call_is_explained_by_the_rules_of_its_time() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let world = World::new(&database, &plane).await;
        let desk = Desk::of(&world.admin);
        let rule = pb::RuleSpec {
            condition: "args.amount > 100".into(),
            ..forbid("big", &["billing"], &["refund"])
        };
        desk.create(rule.clone(), "").await.unwrap();
        let revision = desk.version(1).await.unwrap().version.unwrap().revision;
        let payload = r#"{"name":"refund","arguments":{"amount":250}}"#;
        // As a proxy records it.
        let denied = Event {
            outcome: Outcome::Denied,
            rule: "rule:big".into(),
            reason: "forbidden".into(),
            revision,
            ..world.call(0, "refund", payload, Utc::now())
        };
        let blind = Event { request_payload: String::new(), id: Uuid::now_v7(), ..denied.clone() };
        world.store(&[denied.clone(), blind.clone()]).await;

        let about = |id: Uuid| pb::explain_request::About::AuditId(id.to_string());
        let said = desk.explain(about(denied.id)).await.unwrap();
        let recorded = said.recorded.clone().unwrap();
        assert_eq!((said.decision.as_str(), said.rule.as_str()), ("forbid", "rule:big"));
        assert_eq!((recorded.decision.as_str(), recorded.rule.as_str()), ("denied", "rule:big"));
        assert_eq!((said.revision, said.version, said.now.as_str()), (revision, 1, ""));
        assert_eq!(said.inputs["args"], r#"{"amount":250}"#);
        let result = |said: &pb::ExplainResponse, rule: &str| {
            said.steps.iter().find(|step| step.rule == rule).map(|step| step.result.clone())
        };
        assert_eq!(result(&said, "rule:big").as_deref(), Some("applies"));
        assert_eq!(result(&said, "role:user").as_deref(), Some("applies"));

        // The rule changes: what was then stays what it was, and what is now is told beside it.
        desk.update(pb::RuleSpec { condition: "args.amount > 1000".into(), ..rule }, 1).await.unwrap();
        let said = desk.explain(about(denied.id)).await.unwrap();
        assert_eq!((said.decision.as_str(), said.version), ("forbid", 1));
        assert_eq!(said.now, "allow by role:user");
        let said = desk.explain(about(blind.id)).await.unwrap();
        assert!(said.notes.iter().any(|note| note.contains("not captured")), "{:?}", said.notes);
        assert_eq!(desk.explain(about(Uuid::now_v7())).await.unwrap_err().code(), Code::NotFound);

        let call = |amount: &str| pb::Imagined {
            principal: "ada@test".into(),
            server: "billing".into(),
            tool: "refund".into(),
            arguments: amount.into(),
            ..Default::default()
        };
        let imagined = |call: pb::Imagined| desk.explain(pb::explain_request::About::Call(call));
        let said = imagined(call(r#"{"amount": 1000.5}"#)).await.unwrap();
        assert_eq!((said.decision.as_str(), said.rule.as_str()), ("forbid", "rule:big"));
        assert_eq!(imagined(call(r#"{"amount": 1000}"#)).await.unwrap().decision, "allow");
        let said = imagined(call(r#"{"amuont": 1}"#)).await.unwrap();
        assert_eq!(result(&said, "rule:big").as_deref(), Some("failed"), "{:?}", said.steps);
        assert_eq!(said.decision, "forbid");
        assert_eq!(imagined(call("[1]")).await.unwrap_err().code(), Code::InvalidArgument);
        let nobody = pb::Imagined { principal: "eve@test".into(), ..call("") };
        assert_eq!(imagined(nobody).await.unwrap_err().code(), Code::NotFound);
        plane.stop().await;
        database.drop().await;
    }
}

fn draft(text: &str) -> Vec<RuleSpec> {
    serde_json::from_str(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_tried_on_past_calls_and_the_counts_are_exact() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let world = World::new(&database, &plane).await;
        let desk = Desk::of(&world.admin);
        desk.create(forbid("no-deletes", &[], &["delete"]), "").await.unwrap();
        let now = Utc::now();
        let ago = |minutes: i64| now - TimeDelta::minutes(minutes);
        let refund = |amount: &str| format!(r#"{{"name":"refund","arguments":{{"amount":{amount}}}}}"#);
        let mut calls = vec![
            world.call(0, "refund", &refund("50"), ago(9)),
            world.call(0, "refund", &refund("500"), ago(8)),
            world.call(0, "refund", &refund("501"), ago(7)),
            world.call(1, "refund", &refund("5000"), ago(6)),
            world.call(1, "refund", "", ago(5)),
            world.call(0, "delete", "", ago(4)),
            world.call(0, "delete", "", ago(3)),
            world.call(1, "look", "", ago(2)),
            // Too long ago, of nobody who is there, and no call.
            world.call(0, "delete", "", now - TimeDelta::days(9)),
            Event { principal_id: Some(Uuid::now_v7()), ..world.call(0, "delete", "", ago(1)) },
            Event { action: "mcp.tools/list".into(), ..world.call(0, "", "", ago(1)) },
        ];
        // In two places of the trail, so that what is kept of a kind is used again.
        calls.rotate_left(3);
        world.store(&calls).await;
        let rules = r#"[
            {"name": "no-deletes", "effect": "forbid", "items": {"tools": ["erase"]}},
            {"name": "small", "effect": "forbid", "items": {"tools": ["refund"]}, "condition": "args.amount > 100"},
            {"name": "watch", "effect": "forbid", "mode": "log_only", "items": {"tools": ["look"]}}
        ]"#;
        let ctx = OpCtx::system();
        let run = |rules: &str, days: u32| {
            let (policy, ctx) = (world.policy(), ctx.clone());
            let draft = Draft { rules: draft(rules), days, time: None };
            async move { policy.try_rules(&ctx, draft, |_, _| {}).await.unwrap() }
        };
        let found = run(rules, 7).await;
        check_trial(&found, &calls);
        let longer = run(rules, 30).await;
        assert_eq!((longer.gained, longer.calls), (3, 10));
        let same = r#"[{"name": "no-deletes", "effect": "forbid", "items": {"tools": ["delete"]}}]"#;
        let found = run(same, 7).await;
        assert_eq!((found.gained, found.lost, found.unknown, found.calls), (0, 0, 0, 9));
        // Against what is in force now nobody loses by the clock of the call alone.
        let by_time = format!(
            r#"[{{"name": "no-deletes", "effect": "forbid", "items": {{"tools": ["delete"]}}}},
                {{"name": "late", "effect": "forbid", "items": {{"tools": ["look"]}},
                "condition": "request.time > timestamp('{}')"}}]"#,
            ago(60).to_rfc3339()
        );
        let found = run(&by_time, 7).await;
        assert_eq!((found.lost, found.losses[0].target.as_str()), (1, "look"));
        plane.stop().await;
        database.drop().await;
    }
}

fn check_trial(found: &Trial, calls: &[Event]) {
    assert!(found.complete && !found.cut);
    assert_eq!((found.calls, found.gained, found.lost, found.unknown, found.gone), (9, 2, 3, 1, 1));
    let said: Vec<(&str, &str, u64)> =
        found.losses.iter().map(|row| (row.principal.as_str(), row.target.as_str(), row.calls)).collect();
    assert_eq!(said, [("ada@test", "refund", 2), ("bob@test", "refund", 1)]);
    assert_eq!(
        (found.losses[0].before.as_str(), found.losses[0].after.as_str()),
        ("allow by role:user", "forbid by rule:small")
    );
    let gained = &found.gains[0];
    assert_eq!((gained.principal.as_str(), gained.target.as_str(), gained.calls), ("ada@test", "delete", 2));
    let times: Vec<_> =
        calls.iter().filter(|call| gained.examples.contains(&call.id)).map(|call| call.occurred_at).collect();
    assert_eq!((times.iter().min(), times.iter().max()), (Some(&gained.first_at), Some(&gained.last_at)));
    assert_eq!((found.unknowns[0].principal.as_str(), found.unknowns[0].calls), ("bob@test", 1));
    assert_eq!(found.logged, [("watch".to_owned(), 1)]);
}

async fn add_tenant(database: &Database, tenant: &str) {
    let time = "2026-01-01T00:00:00+00:00";
    let sql = format!("INSERT INTO tenants (id, created_at) VALUES ('{tenant}', '{time}')");
    match database.url.starts_with("sqlite") {
        true => {
            let mut conn = sqlx::SqliteConnection::connect(&database.url).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        }
        false => {
            let mut conn = sqlx::PgConnection::connect(&database.url).await.unwrap();
            let sql = format!("SET waffles.scope = 'everywhere'; {sql}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_never_sees_anothers_rules() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let world = World::new(&database, &plane).await;
        add_tenant(&database, "acme").await;
        let (policy, ours, theirs) = (world.policy(), OpCtx::system(), OpCtx::system_of("acme"));
        let rule = |name: &str| RuleSpec::forbid_all(name);
        policy.create(&theirs, rule("secret"), "theirs").await.unwrap();
        policy.create(&ours, rule("open"), "ours").await.unwrap();
        let names = |ctx: OpCtx| {
            let policy = policy.clone();
            async move {
                let found = policy.list(&ctx, &Page::default()).await.unwrap();
                found.page.items.into_iter().map(|stored| stored.rule.spec.name).collect::<Vec<_>>()
            }
        };
        assert_eq!(
            (names(ours.clone()).await, names(theirs.clone()).await),
            (vec!["open".to_owned()], vec!["secret".to_owned()])
        );
        // One that is another tenant's is told apart from one that is not there by nothing.
        let foreign = policy.get(&ours, "secret").await.unwrap_err().to_string();
        assert_eq!(
            foreign.replace("secret", "unknown"),
            policy.get(&ours, "unknown").await.unwrap_err().to_string()
        );
        assert!(policy.remove(&ours, "secret", "").await.is_err());
        // The numbers of versions are each tenant's own.
        let versions = policy.versions(&ours, &Page::default()).await.unwrap().items;
        assert_eq!((versions.len(), versions[0].version, versions[0].comment.as_str()), (1, 1, "ours"));
        policy.roll_back(&ours, 0, None, "").await.unwrap();
        assert_eq!(names(theirs.clone()).await, ["secret"]);
        // A call of another tenant is no call.
        let call = world.call(0, "refund", "", Utc::now());
        world.store(std::slice::from_ref(&call)).await;
        assert!(policy.explain(&theirs, About::Past(call.id)).await.is_err());
        let imagined =
            Imagined { principal: "ada@test".into(), server: "billing".into(), ..Imagined::default() };
        assert!(policy.explain(&theirs, About::Imagined(Box::new(imagined))).await.is_err());
        let draft = Draft { rules: Vec::new(), days: 7, time: None };
        assert_eq!(policy.try_rules(&theirs, draft, |_, _| {}).await.unwrap().calls, 0);
        plane.stop().await;
        database.drop().await;
    }
}

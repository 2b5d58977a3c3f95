use super::*;

fn server(name: &str, version: u64) -> Server {
    Server {
        id: Uuid::from_u128(u128::from(name.bytes().map(u64::from).sum::<u64>())),
        tenant: "default".into(),
        spec: Spec {
            name: name.into(),
            description: "d".into(),
            tags: vec!["a".into()],
            endpoints: vec![Endpoint { url: Url::parse("https://mcp.example.com/mcp").unwrap(), weight: 3 }],
            tools: ToolFilter { allow: vec!["get_*".into()], deny: vec!["get_secret".into()] },
            audit: AuditMode::Strict,
            capture: Capture::Full,
            redact: vec!["ssn".into()],
            ..Spec::default()
        },
        credential: Credential::Basic { username: "u".into(), password: "p".into() },
        enabled: true,
        version,
        created_at: DateTime::from_timestamp(1, 0).unwrap(),
        updated_at: DateTime::from_timestamp(2, 500_000).unwrap(),
    }
}

fn key(id: &str) -> ApiKey {
    ApiKey::compile(ApiKeyParts {
        id: id.into(),
        tenant: "default".into(),
        name: "ci".into(),
        owner: Uuid::from_u128(7),
        limits: KeyLimits {
            scopes: vec![Permission::GatewayUse],
            tools: vec!["get_*".into()],
            ..KeyLimits::default()
        },
        created_at: DateTime::from_timestamp(1, 0).unwrap(),
        expires_at: DateTime::from_timestamp(9, 0),
        revoked_at: None,
        not_after: None,
    })
    .unwrap()
}

fn full() -> Update {
    let settings =
        Settings::new([1; 32], SealRing::new(vec![SealKey::new(1, &[2; 32])]), "iss".into(), "aud".into());
    let principal = Principal {
        id: Uuid::from_u128(7),
        tenant: "default".into(),
        name: "alice".into(),
        roles: vec!["user".into()],
        active: true,
        ..Principal::default()
    };
    Update {
        lineage: "l".into(),
        revision: 5,
        full: true,
        resources: vec![
            settings_resource(&settings),
            principal_resource(&principal),
            key_resource(&key("k1"), &[9; 32]),
            token_key_resource(&TokenKey { kid: "t1".into(), public_key: [3; 32] }),
            server_resource(&server("demo", 1)),
            limit_resource(&limit(10)),
        ],
        removed: vec![],
    }
}

fn limit(amount: u64) -> crate::limit::Limit {
    let spec = serde_json::from_value(serde_json::json!({
        "name": "few", "description": "d", "kind": "quota", "amount": amount, "window_seconds": 60,
        "per": ["principal", "tool"], "principals": {"roles": ["user"], "groups": ["ops"], "names": ["a"]},
        "servers": ["demo"], "tools": ["get_*"], "classes": ["calls"],
    }));
    crate::limit::Limit { id: Uuid::from_u128(5), tenant: "default".into(), spec: spec.unwrap() }
}

#[test]
fn a_refused_limit_goes_on_in_its_last_good_form() {
    let (snapshot, _) = Snapshot::default().with_update(full());
    let amount = |snapshot: &Snapshot| snapshot.limit(&Uuid::from_u128(5)).map(|l| l.limit.spec.amount);
    let update = |amount| Update {
        lineage: "l".into(),
        revision: 6,
        resources: vec![limit_resource(&limit(amount))],
        ..Update::default()
    };
    assert_eq!(snapshot.limit(&Uuid::from_u128(5)).unwrap().limit, limit(10));
    let (next, refusals) = snapshot.with_update(update(0));
    assert_eq!((refusals.len(), amount(&next)), (1, Some(10)));
    let (next, refusals) = next.with_update(update(20));
    assert_eq!((refusals.len(), amount(&next)), (0, Some(20)));
    let removed = vec![reference(&ResourceKey::new(Kind::Limit, Uuid::from_u128(5)))];
    let (next, _) =
        next.with_update(Update { lineage: "l".into(), revision: 8, removed, ..Update::default() });
    assert!(next.limits("default").is_none());
}

fn sorted(mut update: pb::StreamResponse) -> pb::StreamResponse {
    update.resources.sort_by_key(|r| format!("{:?}", key_of(r)));
    update
}

#[test]
fn a_snapshot_survives_the_wire() {
    let (snapshot, refusals) = Snapshot::default().with_update(full());
    assert_eq!(refusals, []);
    assert!(snapshot.is_usable());
    let (again, refusals) = Snapshot::default().with_update(snapshot.to_update().into());
    assert_eq!(refusals, []);
    assert_eq!(sorted(again.to_update()), sorted(snapshot.to_update()));
    assert_eq!(again.server("default", "demo").unwrap().server.spec, server("demo", 1).spec);
    assert_eq!(again.key(&[9; 32]).unwrap().id, "k1");
}

#[test]
fn an_operator_never_sees_a_secret() {
    let shown = format!("{:?}", server_to_proto(&server("demo", 1), false));
    assert!(shown.contains(r#"password: """#), "{shown}");
}

#[test]
fn a_refused_server_keeps_its_last_good_form_and_a_refused_key_is_gone() {
    let (snapshot, _) = Snapshot::default().with_update(full());
    let mut bad_server = server_resource(&server("demo", 2));
    if let Some(pb::resource::Kind::Server(message)) = &mut bad_server.kind {
        message.spec.as_mut().unwrap().endpoints.clear();
    }
    let mut bad_key = key_resource(&key("k1"), &[9; 32]);
    if let Some(pb::resource::Kind::ApiKey(message)) = &mut bad_key.kind {
        message.api_key.as_mut().unwrap().limits.as_mut().unwrap().scopes = vec!["no:such".into()];
    }
    let good = server_resource(&server("other", 1));
    let update = Update {
        lineage: "l".into(),
        revision: 6,
        full: false,
        resources: vec![bad_server, bad_key, good],
        removed: vec![],
    };
    let (next, refusals) = snapshot.with_update(update);
    let named: Vec<_> = refusals.iter().map(|r| r.key.as_ref().unwrap().kind).collect();
    assert_eq!(named, [Kind::Server, Kind::ApiKey]);
    assert_eq!(next.server("default", "demo").unwrap().server.version, 1);
    assert!(next.key(&[9; 32]).is_none());
    assert!(next.server("default", "other").is_some());
    assert_eq!(next.refused.len(), 2);
}

#[test]
fn a_removal_is_applied_and_nothing_else_goes() {
    let (snapshot, _) = Snapshot::default().with_update(full());
    let update = Update {
        lineage: "l".into(),
        revision: 6,
        full: false,
        resources: vec![],
        removed: vec![reference(&ResourceKey::new(Kind::ApiKey, "k1"))],
    };
    let (next, refusals) = snapshot.with_update(update);
    assert_eq!(refusals, []);
    assert!(next.key(&[9; 32]).is_none());
    assert_eq!(next.counts().map(|(_, n)| n), [1, 1, 0, 1, 0, 0, 0, 0, 1]);
}

#[test]
fn a_full_update_drops_what_it_does_not_name() {
    let (snapshot, _) = Snapshot::default().with_update(full());
    let mut update = full();
    update.revision = 9;
    update.resources.retain(|r| !matches!(r.kind, Some(pb::resource::Kind::Server(_))));
    let (next, _) = snapshot.with_update(update);
    assert!(next.server("default", "demo").is_none());
}

#[test]
fn an_end_that_cannot_be_read_is_not_taken_for_no_end() {
    let mut resource = key_resource(&key("k1"), &[9; 32]);
    if let Some(pb::resource::Kind::ApiKey(message)) = &mut resource.kind {
        message.api_key.as_mut().unwrap().expires_at = Some(Timestamp { seconds: 0, nanos: -1 });
    }
    let (next, refusals) = Snapshot::default().with_update(Update { resources: vec![resource], ..full() });
    assert_eq!(refusals.len(), 1);
    assert!(next.key(&[9; 32]).is_none());
}

#[test]
fn an_event_survives_the_wire() {
    let mut event = Event::new(Uuid::from_u128(3), DateTime::from_timestamp(10, 123_456_789).unwrap());
    event.principal_id = Some(Uuid::from_u128(7));
    event.target = "echo".into();
    event.outcome = Outcome::Denied;
    event.http_status = 404;
    event.rpc_code = -32602;
    assert_eq!(event_from_proto(event_to_proto(event.clone())).unwrap(), event);
    for outcome in Outcome::ALL {
        assert_eq!(outcome_from_proto(outcome_to_proto(outcome).into()), Some(outcome));
    }
}

#[test]
fn the_wrong_fields_of_a_specification_are_all_named() {
    let message = registry_pb::ServerSpec {
        name: "UPPER".into(),
        endpoints: vec![registry_pb::Endpoint { url: "not a url".into(), weight: 1 }],
        transport: 99,
        ..registry_pb::ServerSpec::default()
    };
    let fields: Vec<_> = spec_from_proto(message).unwrap_err().into_iter().map(|p| p.field).collect();
    assert_eq!(fields, ["endpoints[0].url", "transport", "name"]);
}

/// What the next version says, as this one reads it: fields and kinds that do not exist yet, behind those that do.
fn from_the_next_version<M: prost::Message + Default>(message: &M) -> M {
    let mut bytes = message.encode_to_vec();
    // Field 500: a number; field 501: a message with a text.
    bytes.extend([0xa0, 0x1f, 0x07, 0xaa, 0x1f, 0x05, 0x0a, 0x03, b'n', b'e', b'w']);
    M::decode(bytes.as_slice()).unwrap()
}

#[test]
fn what_a_newer_version_adds_is_read_over() {
    let mut update = full();
    update.resources = update.resources.iter().map(from_the_next_version).collect();
    let (snapshot, refused) = Snapshot::default().with_update(update);
    assert_eq!(refused, []);
    assert_eq!(snapshot.counts(), Snapshot::default().with_update(full()).0.counts());
}

#[test]
fn a_kind_of_a_newer_version_is_refused_by_name_and_hurts_nothing_else() {
    let unknown = from_the_next_version(&pb::Resource { id: "later".into(), kind: None });
    let mut update = full();
    update.resources.insert(0, unknown.clone());
    let (snapshot, refused) = Snapshot::default().with_update(update);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].reason.contains("later: unknown kind"), "{refused:?}");
    assert_eq!(snapshot.counts(), Snapshot::default().with_update(full()).0.counts());
    assert!(snapshot.is_usable());
    // Nor does its removal, or another revision with it.
    let next = Update {
        lineage: "l".into(),
        revision: 6,
        full: false,
        resources: vec![unknown],
        removed: vec![from_the_next_version(&pb::ResourceRef { kind: 9999, id: "later".into() })],
    };
    let (after, refused) = snapshot.with_update(next);
    assert_eq!((after.revision, refused.len()), (6, 1));
    assert_eq!(after.counts(), snapshot.counts());
}

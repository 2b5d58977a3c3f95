use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_its_servers_and_its_own() {
    for (server, name) in
        [("a", "b"), ("my-server", "do.it"), ("s", "__x"), ("s", "_"), ("s", "-"), ("0", "a__b")]
    {
        let public = join(server, name);
        assert_eq!(public, format!("{server}__{name}"));
        assert_eq!(split(&public), Public::Exact { server, name });
        assert!(!is_short_of(&public, server, name), "{public}");
    }
}

#[test]
fn what_clients_may_refuse_gets_a_short_form() {
    let long = "x".repeat(62);
    for (server, name, head) in [
        ("s", long.as_str(), "s_-x"),
        ("s", "", "s_--"),
        ("s", "a b/c", "s_-a-b-c-"),
        ("s", "naïve", "s_-na-ve-"),
        ("a-server-with-a-long-name", "list things", "a-server-with-a-_-list-things-"),
    ] {
        let public = join(server, name);
        assert!(public.starts_with(head), "{public}");
        assert!(public.len() <= MAX_NAME, "{public}");
        assert!(public.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{public}");
        assert_eq!(split(&public), Public::Short { text: &public });
        assert!(is_short_of(&public, server, name));
        assert!(!is_short_of(&public, server, "other") && !is_short_of(&public, "t", name));
    }
    assert_eq!(join("s", &"x".repeat(61)).len(), MAX_NAME);
    assert_eq!(join("s", "a b"), "s_-a-b-5ludx2zwfz45knvk", "the form is for ever");
}

#[test]
fn other_names_have_no_server() {
    for bare in
        ["", "search", "_x", "A__b", "a.b__c", "s__", "s_x", "s_-x", "s_-x-aaaaaaaaaaaaaaa1", "a_", "é__x"]
    {
        assert_eq!(split(bare), Public::Bare(bare), "{bare}");
    }
}

proptest! {
    #[test]
    fn no_two_things_share_a_name(
        pairs in prop::collection::btree_set(("[a-b]{1,2}(-[a-z0-9]{1,20})?", "[ab_./é -]{0,3}[a-z_]{0,70}"), 1..30)
    ) {
        let mut seen = HashMap::new();
        for (server, name) in &pairs {
            let public = join(server, name);
            prop_assert!(public.len() <= MAX_NAME);
            match split(&public) {
                Public::Exact { server: found, name: own } => prop_assert_eq!((found, own), (server.as_str(), name.as_str())),
                Public::Short { .. } => prop_assert!(is_short_of(&public, server, name)),
                Public::Bare(_) => prop_assert!(false, "{} has no server", public),
            }
            let before = seen.insert(public.clone(), (server, name));
            prop_assert!(before.is_none(), "{:?} and {:?} are both {}", before, (server, name), public);
        }
    }
}

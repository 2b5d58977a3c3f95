//! No way up: random sequences of administrative calls by people who are not admins, against a small model of who holds
//! what. Whatever succeeds must not give anybody anything that its actor did not hold.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use waffles_core::policy::Role;
use waffles_tests::{Dice, Waffles, WafflesOptions};

/// A permission, and the server it is held on; none: the whole tenant.
type Right = (String, Option<&'static str>);

const SERVER: &str = "crm";
const PEOPLE: [&str; 3] = ["ann", "ben", "cat"];
const GROUP: &str = "crew";
/// Custom roles, which change on the way.
const CUSTOM: [&str; 3] = ["one", "two", "three"];
const BUILT_IN: [Role; 4] = [Role::Admin, Role::Operator, Role::User, Role::Auditor];
/// What made-up roles are made of.
const PERMISSIONS: [&str; 9] = [
    "access:read",
    "access:write",
    "principals:read",
    "principals:write",
    "keys:own",
    "keys:manage",
    "servers:read",
    "servers:write",
    "audit:read",
];

/// Some permissions, and one at the least.
fn some(dice: &mut Dice) -> BTreeSet<String> {
    let mut some: BTreeSet<String> =
        PERMISSIONS.iter().filter(|_| dice.roll(3) == 0).map(ToString::to_string).collect();
    some.insert(dice.pick(&PERMISSIONS).to_owned());
    some
}

/// Who a role is granted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Person(&'static str),
    Group,
}

/// Who holds what: as simple as it can be said, and nothing of the product's own code but its built-in roles.
#[derive(Debug, Clone, Default)]
struct Model {
    roles: BTreeMap<String, BTreeSet<String>>,
    /// Grants by their id.
    grants: BTreeMap<String, (String, Holder, Option<&'static str>)>,
    members: BTreeSet<&'static str>,
}

impl Model {
    fn of(&self, role: &str) -> BTreeSet<String> {
        match Role::parse(role) {
            Some(role) => {
                role.permissions().iter().map(|permission| permission.as_str().to_owned()).collect()
            }
            None => self.roles.get(role).cloned().unwrap_or_default(),
        }
    }

    fn rights(&self, person: &str) -> BTreeSet<Right> {
        let holds = |holder: &Holder| match holder {
            Holder::Person(name) => *name == person,
            Holder::Group => self.members.contains(person),
        };
        let held = self.grants.values().filter(|(_, holder, _)| holds(holder));
        held.flat_map(|(role, _, on)| self.of(role).into_iter().map(|permission| (permission, *on))).collect()
    }

    /// Whether somebody holds a right, there or in the whole tenant.
    fn covers(rights: &BTreeSet<Right>, right: &Right) -> bool {
        rights.contains(right) || rights.contains(&(right.0.clone(), None))
    }
}

struct World {
    http: reqwest::Client,
    base: String,
    admin: String,
    keys: BTreeMap<&'static str, String>,
    model: Model,
    /// In the names of this world, so that worlds do not meet.
    suffix: usize,
}

impl World {
    fn name(&self, name: &str) -> String {
        match Role::parse(name) {
            Some(_) => name.to_owned(),
            None => format!("{name}-{}", self.suffix),
        }
    }

    async fn send(&self, method: &str, path: &str, key: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method.parse().unwrap(), url).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        assert!(status < 500, "{method} {path}: {status}");
        (status, answer.json().await.unwrap_or_default())
    }

    async fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, path, &self.admin, Some(body)).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// A grant as the API takes it.
    fn grant(&self, role: &str, holder: Holder, on: Option<&str>) -> Value {
        let scope = match on {
            None => json!({"kind": "tenant"}),
            Some(server) => json!({"kind": "server", "server": server}),
        };
        match holder {
            Holder::Person(name) => {
                json!({"role": self.name(role), "principal": self.name(name), "scope": scope})
            }
            Holder::Group => json!({"role": self.name(role), "group": self.name(GROUP), "scope": scope}),
        }
    }

    async fn make(waffles: &Waffles, suffix: usize, dice: &mut Dice) -> Self {
        let http = waffles_tests::programs::http_client();
        let mut world = Self {
            http,
            base: waffles.control_plane.http_url("/api/v1"),
            admin: waffles.admin.secret.clone(),
            keys: BTreeMap::new(),
            model: Model::default(),
            suffix,
        };
        world.must("POST", "/groups", json!({"name": world.name(GROUP)})).await;
        for role in CUSTOM {
            let permissions = some(dice);
            world.must("POST", "/roles", json!({"name": world.name(role), "permissions": permissions})).await;
            world.model.roles.insert(role.to_owned(), permissions);
        }
        for person in PEOPLE {
            let name = world.name(person);
            world.must("POST", "/service-accounts", json!({"name": name})).await;
            let key =
                world.must("POST", &format!("/service-accounts/{name}/api-keys"), json!({"name": "k"})).await;
            world.keys.insert(person, key["secret"].as_str().unwrap().to_owned());
            // Nobody here begins as an admin, and everybody with something.
            let role = dice.pick(&CUSTOM);
            let on = dice.pick(&[None, None, Some(SERVER)]);
            let grant = world.grant(role, Holder::Person(person), on);
            let made = world.must("POST", "/grants", grant).await;
            let id = made["id"].as_str().unwrap().to_owned();
            world.model.grants.insert(id, (role.to_owned(), Holder::Person(person), on));
        }
        world
    }

    /// One call by one of them. What succeeded is taken over into the model. Gives whether it did.
    async fn step(&mut self, dice: &mut Dice, what: &str) -> bool {
        let actor = dice.pick(&PEOPLE);
        let key = self.keys[actor].clone();
        let before = self.model.clone();
        let own = before.rights(actor);
        let said;
        let status = match dice.roll(7) {
            0 | 1 => {
                let role = if dice.roll(3) == 0 { dice.pick(&BUILT_IN).as_str() } else { dice.pick(&CUSTOM) };
                let holder =
                    if dice.roll(4) == 0 { Holder::Group } else { Holder::Person(dice.pick(&PEOPLE)) };
                let on = dice.pick(&[None, Some(SERVER)]);
                said = format!("{actor} grants {role} to {holder:?} on {on:?}");
                let body = self.grant(role, holder, on);
                let (status, answer) = self.send("POST", "/grants", &key, Some(body)).await;
                if status == 201 {
                    let id = answer["id"].as_str().unwrap().to_owned();
                    self.model.grants.insert(id, (role.to_owned(), holder, on));
                }
                status
            }
            2 => {
                let ids: Vec<String> = self.model.grants.keys().cloned().collect();
                let Some(id) = ids.get(dice.roll(ids.len().max(1))) else { return false };
                said = format!("{actor} takes back {id}");
                let (status, _) = self.send("DELETE", &format!("/grants/{id}"), &key, None).await;
                if (200..300).contains(&status) {
                    self.model.grants.remove(id);
                }
                status
            }
            3 => {
                let (role, permissions) = (dice.pick(&CUSTOM), some(dice));
                said = format!("{actor} makes {role} {permissions:?}");
                let path = format!("/roles/{}", self.name(role));
                let (_, present) = self.send("GET", &path, &self.admin, None).await;
                let body = json!({"permissions": permissions, "version": present["version"]});
                let (status, _) = self.send("PUT", &path, &key, Some(body)).await;
                if status == 200 {
                    self.model.roles.insert(role.to_owned(), permissions);
                }
                status
            }
            4 => {
                let member = dice.pick(&PEOPLE);
                said = format!("{actor} puts {member} into the group");
                let path = format!("/groups/{}/members/{}", self.name(GROUP), self.name(member));
                let (status, _) = self.send("PUT", &path, &key, None).await;
                if (200..300).contains(&status) {
                    self.model.members.insert(member);
                }
                status
            }
            5 => {
                let whose = dice.pick(&PEOPLE);
                said = format!("{actor} makes a key for {whose}");
                let path = format!("/service-accounts/{}/api-keys", self.name(whose));
                let (status, _) = self.send("POST", &path, &key, Some(json!({"name": "more"}))).await;
                if status == 201 {
                    // Who has somebody's key has what they hold.
                    for right in before.rights(whose) {
                        assert!(Model::covers(&own, &right), "{what}: {said}, and got {right:?}");
                    }
                }
                status
            }
            _ => {
                let scopes = some(dice);
                said = format!("{actor} makes an own key of {scopes:?}");
                let body =
                    json!({"name": "narrow", "limits": {"scopes": scopes, "read_only": dice.roll(2) == 0}});
                let (status, answer) = self.send("POST", "/api-keys", &key, Some(body)).await;
                if status == 201 {
                    let secret = answer["secret"].as_str().unwrap();
                    let (_, me) = self.send("GET", "/auth/me", secret, None).await;
                    for permission in me["permissions"].as_array().unwrap() {
                        let permission = permission.as_str().unwrap().to_owned();
                        assert!(own.contains(&(permission.clone(), None)), "{what}: {said}: {permission}");
                        assert!(
                            scopes.contains(&permission),
                            "{what}: {said}: {permission} is not in its scopes"
                        );
                    }
                }
                status
            }
        };
        for person in PEOPLE {
            for right in self.model.rights(person).difference(&before.rights(person)) {
                assert!(
                    Model::covers(&own, right),
                    "{what}: {said}, which gave {person} {right:?}; the actor held {own:?}"
                );
            }
        }
        (200..300).contains(&status)
    }

    /// The control plane gives nobody more than the model does.
    async fn settle(&self, what: &str) {
        for person in PEOPLE {
            let (_, me) = self.send("GET", "/auth/me", &self.keys[person], None).await;
            let shown: BTreeSet<&str> =
                me["permissions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let rights = self.model.rights(person);
            let tenant: BTreeSet<&str> = rights
                .iter()
                .filter(|(_, on)| on.is_none())
                .map(|(permission, _)| permission.as_str())
                .collect();
            assert_eq!(shown, tenant, "{what}: {person}");
        }
    }
}

#[tokio::test]
async fn nobody_gives_or_gets_what_they_do_not_hold() {
    let wanted: usize =
        std::env::var("WAFFLES_TEST_SEQUENCES").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let waffles = Waffles::with(WafflesOptions { proxies: 0, ..WafflesOptions::default() }).await;
    waffles.add_server(SERVER, "http://127.0.0.1:1024/mcp").await;
    let mut dice = Dice::new(0x5EED_0020);
    let (mut done, mut steps) = (0, 0);
    for sequence in 0..wanted {
        let state = dice.state();
        let mut world = World::make(&waffles, sequence, &mut dice).await;
        for step in 0..8 {
            let what = format!("sequence {sequence} (dice {state:#x}) step {step}");
            done += usize::from(world.step(&mut dice, &what).await);
            steps += 1;
        }
        world.settle(&format!("sequence {sequence} (dice {state:#x})")).await;
    }
    assert!(
        done * 20 > steps && done < steps,
        "{done} of {steps} succeeded: a test of one answer tests nothing"
    );
}

//! Ids of tasks [2026-07-28 extension io.modelcontextprotocol/tasks]. What a client holds is the server's own id with a
//! tag that binds it to the principal and the server, so that nobody looks at, feeds or stops another's task, and a
//! federated door knows whose it is. The same task has the same id whenever it is named.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use waffles_core::seal::SealRing;
use waffles_mcp::Method;

use crate::permit::Permit;

const PURPOSE: &[u8] = b"waffles task 1";
const MARK: &str = "task.";

/// Whether a method is about one task.
pub fn is_about_one(method: &Method) -> bool {
    matches!(method, Method::TasksGet | Method::TasksUpdate | Method::TasksCancel)
}

/// The id for the client.
pub fn public(ring: &SealRing, permit: &Permit, own: &str) -> Option<String> {
    let server = &permit.entry().server;
    let principal = permit.identity().principal().id;
    let tag = ring.tag(PURPOSE, &[principal.as_bytes(), server.id.as_bytes(), own.as_bytes()]).ok()?;
    let (own, tag) = (URL_SAFE_NO_PAD.encode(own), URL_SAFE_NO_PAD.encode(tag));
    Some(format!("{MARK}{}.{own}.{tag}", server.spec.name))
}

/// The server's own id; none for an id that this caller was not given for this server.
pub fn own(ring: &SealRing, permit: &Permit, public: &str) -> Option<String> {
    let (name, rest) = public.strip_prefix(MARK)?.split_once('.')?;
    let (own, tag) = rest.split_once('.')?;
    let own = URL_SAFE_NO_PAD.decode(own).ok()?;
    let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
    let server = &permit.entry().server;
    let principal = permit.identity().principal().id;
    let parts: [&[u8]; 3] = [principal.as_bytes(), server.id.as_bytes(), &own];
    let good = server.spec.name == name && ring.is_tag_of(&tag, PURPOSE, &parts);
    good.then(|| String::from_utf8(own).ok()).flatten()
}

/// The server that an id names. Whether it is to be believed is found out with `own`.
pub fn server_of(public: &str) -> Option<&str> {
    public.strip_prefix(MARK)?.split_once('.').map(|(name, _)| name)
}

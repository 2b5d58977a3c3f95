//! All services in one value: what the doors call.

use crate::audit::Audit;
use crate::enrolment::Enrolment;
use crate::health::Ward;
use crate::identity::Identity;
use crate::limits::Limits;
use crate::namespaces::Namespaces;
use crate::policy::Policy;
use crate::proxies::Proxies;
use crate::registry::Registry;
use crate::secrets::keys::Keys;
use crate::store::Db;
use crate::tenants::Tenants;

/// The services that handlers call.
#[derive(Clone)]
#[expect(missing_docs, reason = "each field is the service of its name")]
pub struct Services {
    pub db: Db,
    pub identity: Identity,
    pub registry: Registry,
    pub namespaces: Namespaces,
    pub policy: Policy,
    pub limits: Limits,
    pub audit: Audit,
    pub proxies: Proxies,
    pub enrolment: Enrolment,
    pub health: Ward,
    pub tenants: Tenants,
    pub keys: Keys,
}

//! May this tenant have one more? Asked within the transaction of the write, so that two at once do not both get the last
//! one.

use chrono::Utc;

use crate::error::Error;
use crate::store::Tx;
use crate::store::tenants as store;

pub use crate::store::tenants::Limited;

/// Refuses what would be more than the tenant may have, and names the limit. Called before the write, near the begin of the
/// transaction.
pub async fn admit(tx: &mut Tx, tenant: &str, what: Limited) -> Result<(), Error> {
    let (limit, things) = match what {
        Limited::Servers => ("max_servers", "servers"),
        Limited::Principals => ("max_principals", "active users and service accounts"),
        Limited::ApiKeys => ("max_api_keys", "API keys in use"),
    };
    match store::reached(tx, tenant, what, Utc::now()).await? {
        Some(most) => Err(Error::Full { limit, most, things }),
        None => Ok(()),
    }
}

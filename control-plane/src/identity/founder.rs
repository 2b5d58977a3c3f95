//! The first admin of a tenant that is being made. Nobody in it could invite anyone before, and whoever made the tenant is of
//! another one and gets no way in: the token is for the admin to set a password with, once.

use chrono::Utc;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::policy::{Role, Scope};
use waffles_core::principal::{Principal, PrincipalKind};

use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::identity::accounts::{PasswordToken, is_email};
use crate::store::Tx;
use crate::store::grants::{self, Grant, Holder};

impl Identity {
    /// Makes the first admin of the tenant in which Waffles itself acts, within the transaction that makes the tenant.
    pub(crate) async fn found_admin(
        &self,
        tx: &mut Tx,
        there: &OpCtx,
        email: &str,
    ) -> Result<(Principal, PasswordToken), Error> {
        let email = email.trim().to_lowercase();
        if !is_email(&email) {
            return Err(Error::invalid("admin_email", "is not an e-mail address"));
        }
        let admin = self.insert(tx, there, PrincipalKind::User, email, "").await?.principal;
        let grant = Grant {
            id: Uuid::now_v7(),
            tenant: there.tenant().to_owned(),
            role: Role::Admin.as_str().to_owned(),
            holder: Holder::Principal(admin.id),
            holder_name: admin.name.clone(),
            to_service_account: false,
            scope: Scope::Tenant,
            created_at: micros(Utc::now()),
            created_by: None,
        };
        grants::insert(tx, &grant).await?;
        let token = self.issue_token(tx, there, &admin, None).await?;
        self.touch(tx, &[admin.id]).await?;
        Ok((admin, token))
    }
}

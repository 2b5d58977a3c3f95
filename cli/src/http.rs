//! The one HTTP client of wafflectl. It goes where its user says, with a credential, and nowhere else: redirects are
//! not followed.

use reqwest::redirect::Policy;

/// A client whose time limits are still to be given.
#[expect(clippy::disallowed_methods, reason = "the one place; a person says where to, on their own machine")]
pub(crate) fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().redirect(Policy::none())
}

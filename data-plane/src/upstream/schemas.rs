//! Which arguments of a server's tools are mirrored in headers, as its current list says [2026-07-28
//! streamable-http#request-metadata]. Remembered for a while, and forgotten when the server says that headers do not match.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::server::Server;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::listing::ParamHeader;

/// How long a list is believed.
const MAX_AGE: Duration = Duration::from_secs(300);

/// The annotated tools of one server, by name.
pub type Annotated = HashMap<String, Arc<Vec<ParamHeader>>>;

#[derive(Debug, Clone)]
struct Known {
    version: u64,
    since: Instant,
    tools: Arc<Annotated>,
}

/// The annotated tools of all servers. Shared by all threads.
#[derive(Debug, Default)]
pub struct Schemas(Mutex<HashMap<Uuid, Known>>);

impl Schemas {
    /// A server's annotated tools; none where they were not read, or too long ago.
    pub fn of(&self, server: &Server) -> Option<Arc<Annotated>> {
        let known = self.0.lock();
        let known = known.get(&server.id)?;
        let good = known.version == server.version && known.since.elapsed() < MAX_AGE;
        good.then(|| Arc::clone(&known.tools))
    }

    /// Remembers what was read.
    pub fn note(&self, server: &Server, tools: Annotated) -> Arc<Annotated> {
        let tools = Arc::new(tools);
        let known = Known { version: server.version, since: Instant::now(), tools: Arc::clone(&tools) };
        self.0.lock().insert(server.id, known);
        tools
    }

    /// Forgets a server's tools.
    pub fn forget(&self, server: &Server) {
        self.0.lock().remove(&server.id);
    }

    /// Forgets servers that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let here: std::collections::HashSet<Uuid> = snapshot.servers().map(|entry| entry.server.id).collect();
        self.0.lock().retain(|id, _| here.contains(id));
    }
}

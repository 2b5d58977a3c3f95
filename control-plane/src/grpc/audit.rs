//! `AuditService`: search, and follow until the caller hangs up, stops reading, or loses the right to.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use waffles_core::policy::Permission;
use waffles_core::wire;
use waffles_proto::audit::v1 as pb;
use waffles_proto::audit::v1::audit_service_server::AuditService;
use waffles_runtime::drain::Drain;
use waffles_runtime::task;

use super::{Shown, actor};
use crate::audit::{Audit, EventFilter, Parts, Tail};
use crate::authz::OpCtx;
use crate::error::Error;
use crate::identity::Identity;
use crate::page::Page;
use crate::services::Services;

/// Messages that wait for a slow reader; behind them the trail itself is the queue.
const WAITING: usize = 4;
/// A reader that takes nothing for this long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the credential is looked at again.
const RECHECK: Duration = Duration::from_secs(5);
/// How long to wait for a database that is away.
const LATER: Duration = Duration::from_secs(2);

pub(super) struct Trail {
    audit: Audit,
    identity: Identity,
    drain: Drain,
}

impl Trail {
    pub(super) fn new(services: &Services, drain: Drain) -> Self {
        Self { audit: services.audit.clone(), identity: services.identity.clone(), drain }
    }
}

#[tonic::async_trait]
impl AuditService for Trail {
    type TailEventsStream = ReceiverStream<Result<pb::TailEventsResponse, Status>>;
    type ExportEventsStream = ReceiverStream<Result<pb::ExportEventsResponse, Status>>;

    async fn search_events(
        &self,
        request: Request<pb::SearchEventsRequest>,
    ) -> Result<Response<pb::SearchEventsResponse>, Status> {
        let ctx = actor(&request)?;
        let pb::SearchEventsRequest { filter, page_size, cursor } = request.into_inner();
        let found = async {
            let filter = filter_from_proto(filter.unwrap_or_default())?;
            self.audit.search(&ctx, &filter, &Page { size: page_size, cursor }).await
        };
        let page = found.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let events = page.items.into_iter().map(wire::event_to_proto).collect();
        Ok(Response::new(pb::SearchEventsResponse { events, next_cursor: page.next }))
    }

    async fn tail_events(
        &self,
        request: Request<pb::TailEventsRequest>,
    ) -> Result<Response<Self::TailEventsStream>, Status> {
        let ctx = actor(&request)?;
        let shown = request.extensions().get::<Shown>().cloned();
        let begun = async {
            let filter = filter_from_proto(request.into_inner().filter.unwrap_or_default())?;
            self.audit.tail(&ctx, filter).await
        };
        let tail = begun.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let shown = shown.ok_or(Error::Unauthenticated)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (identity, drain) = (self.identity.clone(), self.drain.clone());
        task::spawn("audit-tail", async move {
            tokio::select! {
                () = drain.started() => {}
                () = sender.closed() => {}
                end = recheck(&identity, &ctx, &shown) => say(&sender, end).await,
                end = follow(tail, &sender, &ctx) => say(&sender, end).await,
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn export_events(
        &self,
        request: Request<pb::ExportEventsRequest>,
    ) -> Result<Response<Self::ExportEventsStream>, Status> {
        let ctx = actor(&request)?;
        let shown = request.extensions().get::<Shown>().cloned().ok_or(Error::Unauthenticated)?;
        let filter = filter_from_proto(request.into_inner().filter.unwrap_or_default());
        let parts = filter.and_then(|filter| self.audit.export(&ctx, filter));
        let parts = parts.map_err(|error| error.into_status(ctx.request_id()))?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (identity, drain) = (self.identity.clone(), self.drain.clone());
        task::spawn("audit-export-stream", async move {
            tokio::select! {
                () = drain.started() => say(&sender, Status::unavailable("the control plane is ending")).await,
                () = sender.closed() => {}
                end = recheck(&identity, &ctx, &shown) => say(&sender, end).await,
                end = pass_on(parts, &sender, &ctx) => if let Some(end) = end {
                    say(&sender, end).await;
                },
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Passes an export on; none when it has come to its end.
async fn pass_on(
    mut parts: Parts,
    sender: &mpsc::Sender<Result<pb::ExportEventsResponse, Status>>,
    ctx: &OpCtx,
) -> Option<Status> {
    while let Some(part) = parts.recv().await {
        let lines = match part {
            Ok(lines) => lines.into(),
            Err(error) => return Some(error.into_status(ctx.request_id())),
        };
        match tokio::time::timeout(PATIENCE, sender.send(Ok(pb::ExportEventsResponse { lines }))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Some(Status::cancelled("the caller hung up")),
            Err(_) => return Some(Status::resource_exhausted("the export was not read in time")),
        }
    }
    None
}

async fn follow(
    mut tail: Tail,
    sender: &mpsc::Sender<Result<pb::TailEventsResponse, Status>>,
    ctx: &OpCtx,
) -> Status {
    loop {
        let events = match tail.next().await {
            Ok(events) => events.into_iter().map(wire::event_to_proto).collect(),
            Err(Error::Unavailable { .. }) => {
                tokio::time::sleep(LATER).await;
                continue;
            }
            Err(error) => return error.into_status(ctx.request_id()),
        };
        match tokio::time::timeout(PATIENCE, sender.send(Ok(pb::TailEventsResponse { events }))).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Status::cancelled("the caller hung up"),
            Err(_) => return Status::resource_exhausted("the events were not read in time"),
        }
    }
}

/// Comes back when the credential is no longer good, so that a revoked one does not go on reading.
async fn recheck(identity: &Identity, ctx: &OpCtx, shown: &Shown) -> Status {
    loop {
        tokio::time::sleep(RECHECK).await;
        match identity.authenticate(&shown.0, ctx.request_id(), ctx.address()).await {
            Ok(now) if now.permissions() == ctx.permissions() && now.may(Permission::AuditRead) => {}
            // A database that is away says nothing about the credential, and then there is nothing to read.
            Err(Error::Unavailable { .. }) => {}
            Ok(_) => return Error::Denied.into_status(ctx.request_id()),
            Err(error) => return error.into_status(ctx.request_id()),
        }
    }
}

async fn say<T>(sender: &mpsc::Sender<Result<T, Status>>, end: Status) {
    // A reader that takes not even this is gone.
    if tokio::time::timeout(LATER, sender.send(Err(end))).await.is_err() {
        tracing::debug!("the end of a tail was not read");
    }
}

fn filter_from_proto(message: pb::EventFilter) -> Result<EventFilter, Error> {
    let id = |field: &str, text: &str| match text {
        "" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|_| Error::invalid(format!("filter.{field}"), "is not a UUID"))
        }
    };
    let time = |field: &str, given: Option<prost_types::Timestamp>| match (given, wire::time(given)) {
        (None, _) => Ok(None),
        (Some(_), Some(time)) => Ok(Some(time)),
        (Some(_), None) => Err(Error::invalid(format!("filter.{field}"), "is out of range")),
    };
    let mut outcomes = Vec::new();
    for (i, outcome) in message.outcomes.iter().take(16).enumerate() {
        outcomes.push(
            wire::outcome_from_proto(*outcome)
                .ok_or_else(|| Error::invalid(format!("filter.outcomes[{i}]"), "is not an outcome"))?,
        );
    }
    Ok(EventFilter {
        since: time("since", message.since)?,
        until: time("until", message.until)?,
        id: id("id", &message.id)?,
        proxy_id: id("proxy_id", &message.proxy_id)?,
        principal: message.principal,
        server: message.server,
        target: message.target,
        action: message.action,
        outcomes,
    })
}

//! A request to a server of the stateless revision. What it needs to ask comes as a result, and the request goes again
//! with the answers [2026-07-28 basic/patterns/mrtr]. To stop it, its stream is closed.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, header};
use waffles_mcp::headers;
use waffles_mcp::jsonrpc::code;
use waffles_mcp::translate::handshake::Described;
use waffles_mcp::translate::input::{self, InputRequired};
use waffles_mcp::translate::request;
use waffles_mcp::{Id, Kind, Message, Revision};

use super::{Done, Errand, MAX_ROUNDS, Naming, is_answer};
use crate::reject::{Reject, UpstreamFault};
use crate::upstream::{Heard, Inbox, Manner, Outgoing};

/// In a session, a client that sets no level leaves it to the server; this is what we decide for it.
const SESSION_LEVEL: &str = "info";

impl Errand {
    pub(super) async fn ask_stateless(&mut self, described: &Described) -> Result<Done, Reject> {
        let mut answers = self.head.input_responses.clone();
        let mut state = match &self.state {
            Some(state) => state.upstream.clone(),
            None => self.head.request_state.clone(),
        };
        let mut relisted = false;
        for _ in 0..MAX_ROUNDS {
            let id = self.means.shared.fresh_id();
            let outgoing = self.outgoing(&id, answers.as_deref(), state.as_deref()).await;
            let answer = match Heard::read(self.means.upstream.call(&self.permit, outgoing).await?).await? {
                Heard::Accepted => return Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
                Heard::Inbox(inbox) => self.hear_answer(inbox, &id).await?,
                Heard::Refused { message: Some(message), .. } => *message,
                Heard::Refused { message: None, .. } => {
                    // No server of the stateless revision refuses without saying why.
                    self.means.shared.eras.forget(&self.permit.entry().server);
                    return Err(Reject::Refused);
                }
            };
            // The tool's schema has changed since we read it [2026-07-28 streamable-http#request-metadata].
            if answer.error_code() == Some(code::HEADER_MISMATCH) && !relisted {
                relisted = true;
                self.means.shared.schemas.forget(&self.permit.entry().server);
                continue;
            }
            let bad = |_| Reject::upstream(UpstreamFault::BadAnswer, true);
            let result = answer.result().unwrap_or_default();
            let Some(needed) = input::read_input_required(&result).map_err(bad)? else {
                return self.finish(&answer, described.info.as_ref());
            };
            if self.front.is_stateless() {
                return self.hand_on(&answer, needed);
            }
            answers = Some(self.ask_all(&needed).await?);
            self.goes_on();
            state = needed.state;
        }
        Err(Reject::upstream(UpstreamFault::BadAnswer, true))
    }

    /// The request in the server's words, with all that its revision wants in headers.
    async fn outgoing(&self, id: &Id, answers: Option<&[u8]>, state: Option<&str>) -> Outgoing {
        let edits = self.edits();
        let level = match self.front.is_stateless() {
            true => self.front.log_level.clone(),
            false => Some(self.front.log_level.clone().unwrap_or_else(|| SESSION_LEVEL.to_owned())),
        };
        let extra = request::Extra {
            log_level: level.as_deref(),
            input_responses: answers,
            request_state: state,
            ..self.extra(&edits, id)
        };
        let body = request::to_stateless(&self.message, Some(id), &self.front.client, &extra);
        let mut to = HeaderMap::with_capacity(8);
        to.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers::write(&self.head, Revision::V2026_07_28, &mut to);
        if let Some(annotations) = self.means.annotations(&self.front, &self.permit, &self.head).await {
            headers::write_params(&annotations, self.head.arguments.as_deref(), &mut to);
        }
        let manner = Manner::of(Some(&self.head), &self.permit.entry().server.spec);
        Outgoing { method: HttpMethod::POST, headers: to, body, endpoint: None, path: None, manner }
    }

    async fn hear_answer(&mut self, mut inbox: Inbox, id: &Id) -> Result<Message, Reject> {
        loop {
            match self.hear(&mut inbox).await? {
                None => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
                Some(message) if is_answer(&message) => {
                    if message.id() == Some(id) {
                        inbox.done();
                        return Ok(message);
                    }
                    self.drop_quietly("answer_to_another_request");
                }
                Some(message) if message.kind() == Kind::Notification => self.pass_on(&message, id).await,
                Some(_) => self.drop_quietly("request_on_stateless_stream"),
            }
        }
    }

    /// The server's questions go on to a client that speaks its revision. At a federated door the server's state is
    /// sealed into ours, so that it comes back to the same server, for the same request.
    fn hand_on(&mut self, answer: &Message, needed: InputRequired) -> Result<Done, Reject> {
        if self.naming == Naming::Own {
            return self.finish(answer, None);
        }
        let mut state = self.new_state();
        state.upstream = needed.state;
        self.need_input(&needed.requests, &state)
    }

    /// Puts the server's questions to a session client as requests on its stream, all at once.
    async fn ask_all(&mut self, needed: &InputRequired) -> Result<Bytes, Reject> {
        if !needed.requests.iter().all(|request| self.can_ask(request)) {
            // It may ask only what the client declared, and we passed that on.
            return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
        }
        let mut waiting = Vec::with_capacity(needed.requests.len());
        for request in &needed.requests {
            let answer = self.ask_client(request).await.ok_or(Reject::NoWayToAsk)?;
            waiting.push((request, answer));
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for (request, answer) in waiting {
            let answer = Self::answered(answer).await.ok_or(Reject::NoAnswer)?;
            let result = match answer.result() {
                Some(result) => result,
                // A client's error has no form in the stateless revision, but for a person who does not want.
                None if request.method == "elicitation/create" => {
                    Bytes::from_static(br#"{"action":"cancel"}"#)
                }
                None => return Err(Reject::NoAnswer),
            };
            answers.push((request.key.clone(), result));
        }
        Ok(input::input_responses(&answers))
    }
}

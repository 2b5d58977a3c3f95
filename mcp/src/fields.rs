//! The fields of a message that a gateway reads, found during the one scan of the text and remembered as spans.
//! Everything else is checked for having one reading, and passed over.

use std::ops::Range;

use crate::scan::{Fault, Json, Scanner, Span, folds_to};

/// A field that the gateway reads or may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    Jsonrpc,
    Id,
    Method,
    Params,
    Result,
    Error,
    /// `params.name` of `tools/call` and `prompts/get`.
    Name,
    /// `params.uri` of the resource methods.
    Uri,
    /// `params.taskId` of the task methods.
    TaskId,
    Cursor,
    Arguments,
    /// `params.protocolVersion` of `initialize`.
    ProtocolVersion,
    Capabilities,
    ClientInfo,
    Level,
    /// `params.requestId` of `notifications/cancelled`.
    RequestId,
    /// `params.progressToken` of `notifications/progress`.
    ProgressToken,
    /// `params.notifications`, the filter of `subscriptions/listen`.
    Notifications,
    InputResponses,
    RequestState,
    Task,
    Ref,
    RefType,
    RefName,
    RefUri,
    Meta,
    MetaVersion,
    MetaCapabilities,
    MetaClientInfo,
    MetaLogLevel,
    MetaProgressToken,
    MetaSubscriptionId,
    ResultType,
    ResultTaskId,
    ResultRequestState,
    ResultProtocolVersion,
    ResultNextCursor,
    ResultIsError,
    ErrorCode,
    ErrorMessage,
    ErrorData,
}

/// The objects whose fields are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Envelope,
    Params,
    Meta,
    Ref,
    Result,
    Error,
}

type Row = (&'static str, Slot, Option<Place>);

const ENVELOPE: &[Row] = &[
    ("jsonrpc", Slot::Jsonrpc, None),
    ("id", Slot::Id, None),
    ("method", Slot::Method, None),
    ("params", Slot::Params, Some(Place::Params)),
    ("result", Slot::Result, Some(Place::Result)),
    ("error", Slot::Error, Some(Place::Error)),
];

const PARAMS: &[Row] = &[
    ("name", Slot::Name, None),
    ("arguments", Slot::Arguments, None),
    ("_meta", Slot::Meta, Some(Place::Meta)),
    ("uri", Slot::Uri, None),
    ("taskId", Slot::TaskId, None),
    ("cursor", Slot::Cursor, None),
    ("protocolVersion", Slot::ProtocolVersion, None),
    ("capabilities", Slot::Capabilities, None),
    ("clientInfo", Slot::ClientInfo, None),
    ("level", Slot::Level, None),
    ("requestId", Slot::RequestId, None),
    ("progressToken", Slot::ProgressToken, None),
    ("notifications", Slot::Notifications, None),
    ("inputResponses", Slot::InputResponses, None),
    ("requestState", Slot::RequestState, None),
    ("task", Slot::Task, None),
    ("ref", Slot::Ref, Some(Place::Ref)),
];

const META: &[Row] = &[
    ("io.modelcontextprotocol/protocolVersion", Slot::MetaVersion, None),
    ("io.modelcontextprotocol/clientCapabilities", Slot::MetaCapabilities, None),
    ("io.modelcontextprotocol/clientInfo", Slot::MetaClientInfo, None),
    ("io.modelcontextprotocol/logLevel", Slot::MetaLogLevel, None),
    ("io.modelcontextprotocol/subscriptionId", Slot::MetaSubscriptionId, None),
    ("progressToken", Slot::MetaProgressToken, None),
];

const REF: &[Row] =
    &[("type", Slot::RefType, None), ("name", Slot::RefName, None), ("uri", Slot::RefUri, None)];

const RESULT: &[Row] = &[
    ("resultType", Slot::ResultType, None),
    ("taskId", Slot::ResultTaskId, None),
    ("requestState", Slot::ResultRequestState, None),
    ("protocolVersion", Slot::ResultProtocolVersion, None),
    ("nextCursor", Slot::ResultNextCursor, None),
    ("isError", Slot::ResultIsError, None),
];

const ERROR: &[Row] = &[
    ("code", Slot::ErrorCode, None),
    ("message", Slot::ErrorMessage, None),
    ("data", Slot::ErrorData, None),
];

impl Place {
    fn rows(self) -> &'static [Row] {
        match self {
            Self::Envelope => ENVELOPE,
            Self::Params => PARAMS,
            Self::Meta => META,
            Self::Ref => REF,
            Self::Result => RESULT,
            Self::Error => ERROR,
        }
    }

    /// Where a key that folds to a known one is refused. Results come from servers, whose own fields are free.
    fn refuses_folded(self) -> bool {
        self != Self::Result && self != Self::Error
    }
}

/// The fields that were there, in the order of the text; a message has few, so a list beats an array of all slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    list: Vec<Field>,
    /// The envelope has keys that JSON-RPC does not know.
    foreign: bool,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    slot: Slot,
    /// Where its key starts.
    key: u32,
    value: Span,
}

impl Fields {
    pub(crate) fn new() -> Self {
        Self { list: Vec::with_capacity(12), foreign: false }
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<Span> {
        self.list.iter().find(|field| field.slot == slot).map(|field| field.value)
    }

    /// Whether the envelope has a key that is not JSON-RPC's.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// A field with its key, from the key's quote to the end of the value.
    pub(crate) fn member(&self, slot: Slot) -> Option<Range<usize>> {
        let field = self.list.iter().find(|field| field.slot == slot)?;
        Some(field.key as usize..field.value.range().end)
    }

    /// Reads the envelope and everything below it. After a fault, what was read up to it stays.
    pub(crate) fn read(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Fault> {
        match scanner.peek() {
            Some(b'{') => {}
            Some(b'[') => return Err(Fault::Batch),
            Some(b'"' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => {
                scanner.value()?;
                return Err(Fault::NotAnObject);
            }
            Some(0) => return Err(Fault::Nul),
            _ => return Err(Fault::InvalidJson),
        }
        self.read_object(scanner, Place::Envelope)?;
        scanner.finish()
    }

    fn read_object(&mut self, scanner: &mut Scanner<'_>, place: Place) -> Result<Span, Fault> {
        scanner.object(|scanner, key| {
            let rows = place.rows();
            let Some((_, slot, below)) = rows.iter().find(|(name, ..)| name.as_bytes() == key) else {
                if place.refuses_folded() && rows.iter().any(|(name, ..)| folds_to(key, name)) {
                    return Err(Fault::CaseFoldedKey);
                }
                self.foreign |= place == Place::Envelope;
                return scanner.value().map(drop);
            };
            if *slot == Slot::Id && self.get(Slot::Id).is_some() {
                // Neither id may be echoed: the caller could be waiting for the other one.
                self.list.retain(|field| field.slot != Slot::Id);
                return Err(Fault::DuplicateKey);
            }
            // The scan refuses texts whose offsets do not fit.
            let key = scanner.key_at() as u32;
            let value = match below {
                Some(place) if scanner.peek() == Some(b'{') => self.read_object(scanner, *place)?,
                _ => scanner.value()?,
            };
            self.list.push(Field { slot: *slot, key, value });
            Ok(())
        })
    }

    pub(crate) fn is_a(&self, slot: Slot, json: Json) -> bool {
        self.get(slot).is_some_and(|span| span.json == json)
    }
}

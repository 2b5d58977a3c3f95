//! What a message is to a gateway: its method, and the few fields of `params` that routing, policy and limits go by.
//! They were found when the envelope was parsed, so a field has the one reading that the scan left.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::jsonrpc::{Id, Kind, Message, Slot, code};
use crate::scan::Json;

macro_rules! methods {
    ($($name:ident = $text:literal),+ $(,)?) => {
        /// A method of any published revision, or another one.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Method {
            $($name,)+
            /// A method that no revision names; extensions and vendors have theirs.
            Other(Box<str>),
        }

        impl Method {
            /// Every method with a name of its own.
            pub const KNOWN: &[Self] = &[$(Self::$name),+];

            /// Reads a decoded method name, exactly.
            pub fn parse(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)+
                    other => Self::Other(other.into()),
                }
            }

            /// The name on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(text) => text,
                }
            }

            /// A bounded name for metrics: the method, or `other`.
            pub fn label(&self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                    Self::Other(_) => "other",
                }
            }
        }
    };
}

methods! {
    Initialize = "initialize",
    Initialized = "notifications/initialized",
    Ping = "ping",
    ServerDiscover = "server/discover",
    ToolsList = "tools/list",
    ToolsCall = "tools/call",
    ResourcesList = "resources/list",
    ResourcesTemplatesList = "resources/templates/list",
    ResourcesRead = "resources/read",
    ResourcesSubscribe = "resources/subscribe",
    ResourcesUnsubscribe = "resources/unsubscribe",
    PromptsList = "prompts/list",
    PromptsGet = "prompts/get",
    CompletionComplete = "completion/complete",
    LoggingSetLevel = "logging/setLevel",
    SubscriptionsListen = "subscriptions/listen",
    TasksGet = "tasks/get",
    TasksUpdate = "tasks/update",
    TasksCancel = "tasks/cancel",
    TasksResult = "tasks/result",
    TasksList = "tasks/list",
    Cancelled = "notifications/cancelled",
    Progress = "notifications/progress",
    LoggingMessage = "notifications/message",
    ToolsListChanged = "notifications/tools/list_changed",
    PromptsListChanged = "notifications/prompts/list_changed",
    ResourcesListChanged = "notifications/resources/list_changed",
    ResourcesUpdated = "notifications/resources/updated",
    RootsListChanged = "notifications/roots/list_changed",
    SubscriptionsAcknowledged = "notifications/subscriptions/acknowledged",
    ElicitationCompleted = "notifications/elicitation/complete",
    TasksChanged = "notifications/tasks",
    TasksStatus = "notifications/tasks/status",
    ElicitationCreate = "elicitation/create",
    SamplingCreateMessage = "sampling/createMessage",
    RootsList = "roots/list",
}

impl Method {
    /// The field of `params` that says what the call is about, where the method cannot do without.
    pub fn subject(&self) -> Option<Slot> {
        match self {
            Self::ToolsCall | Self::PromptsGet => Some(Slot::Name),
            Self::ResourcesRead
            | Self::ResourcesSubscribe
            | Self::ResourcesUnsubscribe
            | Self::ResourcesUpdated => Some(Slot::Uri),
            Self::TasksGet | Self::TasksUpdate | Self::TasksCancel | Self::TasksResult => Some(Slot::TaskId),
            _ => None,
        }
    }

    /// Whether 2026-07-28 removed the method [2026-07-28 changelog].
    pub fn is_legacy(&self) -> bool {
        matches!(
            self,
            Self::Initialize
                | Self::Initialized
                | Self::Ping
                | Self::LoggingSetLevel
                | Self::ResourcesSubscribe
                | Self::ResourcesUnsubscribe
                | Self::TasksResult
                | Self::TasksList
        )
    }

    /// Whether the answer is a list that comes in pages.
    pub fn is_list(&self) -> bool {
        matches!(
            self,
            Self::ToolsList
                | Self::PromptsList
                | Self::ResourcesList
                | Self::ResourcesTemplatesList
                | Self::TasksList
        )
    }

    /// The key of the list in the result of a list method, as `listing` wants it.
    pub fn list_key(&self) -> Option<&'static str> {
        match self {
            Self::ToolsList => Some("tools"),
            Self::PromptsList => Some("prompts"),
            Self::ResourcesList => Some("resources"),
            Self::ResourcesTemplatesList => Some("resourceTemplates"),
            Self::TasksList => Some("tasks"),
            _ => None,
        }
    }

    /// Whether 2026-07-28 mirrors the subject in `Mcp-Name` [streamable-http#request-metadata, SEP-2663].
    pub fn mirrors_name(&self) -> bool {
        matches!(
            self,
            Self::ToolsCall
                | Self::PromptsGet
                | Self::ResourcesRead
                | Self::TasksGet
                | Self::TasksUpdate
                | Self::TasksCancel
        )
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What `completion/complete` completes for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The name of a prompt.
    Prompt(String),
    /// The URI or URI template of a resource.
    Resource(String),
}

/// What a gateway reads of a request or notification. Strings are decoded, `Bytes` are slices of the message.
#[derive(Debug, Clone)]
pub struct Head {
    pub method: Method,
    /// Request or notification.
    pub kind: Kind,
    /// `params.name`, `params.uri` or `params.taskId`, after [`Method::subject`].
    pub name: Option<String>,
    /// The target of `completion/complete`.
    pub reference: Option<Reference>,
    pub cursor: Option<String>,
    /// The bytes of `params.arguments`, an object; `None` also for `null`.
    pub arguments: Option<Bytes>,
    /// `_meta` `io.modelcontextprotocol/protocolVersion`: its presence makes a request modern.
    pub meta_version: Option<String>,
    /// Whether `_meta` declares client capabilities, perhaps none (`{}`).
    pub has_client_capabilities: bool,
    /// The declared capabilities: from `_meta`, or from `initialize`.
    pub client_capabilities: Option<Bytes>,
    /// From `_meta`, or from `initialize`. For display only, never for a decision.
    pub client_info: Option<Bytes>,
    /// From `_meta`, or `params.level` of `logging/setLevel`.
    pub log_level: Option<String>,
    /// Source text of a string or integer: `_meta.progressToken`, or that of `notifications/progress`.
    pub progress_token: Option<Bytes>,
    /// `params.protocolVersion` of `initialize`.
    pub protocol_version: Option<String>,
    /// `params.requestId` of `notifications/cancelled`.
    pub request_id: Option<Id>,
    /// The filter of `subscriptions/listen` and of its acknowledgement.
    pub notifications: Option<Bytes>,
    /// `params.inputResponses` of a repeated request [2026-07-28 basic/patterns/mrtr].
    pub input_responses: Option<Bytes>,
    /// `params.requestState` of a repeated request, opaque.
    pub request_state: Option<String>,
}

/// Why the params of a request are refused with -32602, HTTP 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeadError {
    #[error("the message has no method")]
    NoMethod,
    #[error("params.{0} must be a string")]
    NotAString(&'static str),
    #[error("params.{0} must be an object")]
    NotAnObject(&'static str),
    #[error("params.{0} must be a string or an integer")]
    NotAToken(&'static str),
    #[error("params.{0} is required")]
    Missing(&'static str),
    #[error("params.ref must be of type \"ref/prompt\" or \"ref/resource\"")]
    BadReference,
}

impl HeadError {
    /// The JSON-RPC code.
    pub fn code(&self) -> i64 {
        match self {
            Self::NoMethod => code::INVALID_REQUEST,
            _ => code::INVALID_PARAMS,
        }
    }

    /// A stable name in `snake_case`, for metrics, audit and tests.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoMethod => "no_method",
            Self::NotAString(_) => "not_a_string",
            Self::NotAnObject(_) => "params_not_an_object",
            Self::NotAToken(_) => "not_a_token",
            Self::Missing(_) => "missing_field",
            Self::BadReference => "bad_reference",
        }
    }
}

impl Head {
    /// Whether the message speaks for itself, as 2026-07-28 wants it, rather than within a session.
    pub fn is_modern(&self) -> bool {
        self.meta_version.is_some()
    }

    /// What `_meta` of every modern request must have [2026-07-28 basic/index#meta].
    pub fn require_modern(&self) -> Result<(), HeadError> {
        if self.kind == Kind::Request && self.meta_version.is_none() {
            return Err(HeadError::Missing(label(Slot::MetaVersion)));
        }
        if self.kind == Kind::Request && !self.has_client_capabilities {
            return Err(HeadError::Missing(label(Slot::MetaCapabilities)));
        }
        Ok(())
    }
}

/// Reads the head of a request or notification.
pub fn head(message: &Message) -> Result<Head, HeadError> {
    let method = Method::parse(message.method().ok_or(HeadError::NoMethod)?);
    object(message, Slot::Meta)?;
    // What a stateless server answers to a method that its revision removed is `method not found`, whatever the params.
    let removed = message.field(Slot::MetaVersion).is_some() && method.is_legacy();
    let name = match method.subject() {
        Some(_) if removed => None,
        Some(slot) => Some(string(message, slot)?.ok_or(HeadError::Missing(label(slot)))?),
        None => None,
    };
    // Methods of vendors may use the same keys for something else, so each is read only where it has its meaning.
    let (mut cursor, mut arguments, mut input_responses, mut request_state) = (None, None, None, None);
    if matches!(method, Method::ToolsCall | Method::PromptsGet) {
        arguments = object_or_null(message, Slot::Arguments)?;
    }
    if matches!(method, Method::ToolsCall | Method::PromptsGet | Method::ResourcesRead | Method::TasksUpdate)
    {
        input_responses = object(message, Slot::InputResponses)?;
        request_state = string(message, Slot::RequestState)?;
    }
    let notifications = match method {
        Method::SubscriptionsListen => {
            let filter = object(message, Slot::Notifications)?;
            Some(filter.ok_or(HeadError::Missing(label(Slot::Notifications)))?)
        }
        Method::SubscriptionsAcknowledged => object(message, Slot::Notifications)?,
        _ => None,
    };
    if method.is_list() {
        cursor = string_or_null(message, Slot::Cursor)?;
    }
    let (mut protocol_version, mut request_id, mut reference) = (None, None, None);
    let (mut capabilities, mut client_info) = (Slot::MetaCapabilities, Slot::MetaClientInfo);
    let (mut log_level, mut progress_token) = (Slot::MetaLogLevel, Slot::MetaProgressToken);
    match method {
        Method::Initialize if removed => {}
        Method::Initialize => {
            let version = string(message, Slot::ProtocolVersion)?;
            protocol_version = Some(version.ok_or(HeadError::Missing(label(Slot::ProtocolVersion)))?);
            (capabilities, client_info) = (Slot::Capabilities, Slot::ClientInfo);
        }
        Method::Cancelled => {
            let raw = token(message, Slot::RequestId)?;
            request_id = raw.and_then(|raw| Id::from_json(&raw));
        }
        Method::CompletionComplete => reference = Some(completes_for(message)?),
        Method::LoggingSetLevel => log_level = Slot::Level,
        Method::Progress => progress_token = Slot::ProgressToken,
        _ => {}
    }
    let client_capabilities = object(message, capabilities)?;
    Ok(Head {
        kind: message.kind(),
        name,
        reference,
        cursor,
        arguments,
        meta_version: string(message, Slot::MetaVersion)?,
        has_client_capabilities: message.field_is(Slot::MetaCapabilities, Json::Object),
        client_capabilities,
        client_info: object(message, client_info)?,
        log_level: string(message, log_level)?,
        progress_token: token(message, progress_token)?,
        protocol_version,
        request_id,
        notifications,
        input_responses,
        request_state,
        method,
    })
}

fn completes_for(message: &Message) -> Result<Reference, HeadError> {
    object(message, Slot::Ref)?.ok_or(HeadError::Missing(label(Slot::Ref)))?;
    let (slot, make): (_, fn(String) -> Reference) = match message.text(Slot::RefType).as_deref() {
        Some("ref/prompt") => (Slot::RefName, Reference::Prompt),
        Some("ref/resource") => (Slot::RefUri, Reference::Resource),
        _ => return Err(HeadError::BadReference),
    };
    Ok(make(string(message, slot)?.ok_or(HeadError::Missing(label(slot)))?))
}

fn string(message: &Message, slot: Slot) -> Result<Option<String>, HeadError> {
    match message.field(slot) {
        None => Ok(None),
        Some(span) => {
            let text = span.text(message.bytes()).ok_or(HeadError::NotAString(label(slot)))?;
            Ok(Some(text.into_owned()))
        }
    }
}

fn object(message: &Message, slot: Slot) -> Result<Option<Bytes>, HeadError> {
    match message.field(slot) {
        Some(span) if span.json != Json::Object => Err(HeadError::NotAnObject(label(slot))),
        span => Ok(span.map(|span| message.bytes().slice(span.range()))),
    }
}

/// Some clients write optional fields as null; every server that takes it reads it as absent.
fn string_or_null(message: &Message, slot: Slot) -> Result<Option<String>, HeadError> {
    if message.field_is(slot, Json::Null) { Ok(None) } else { string(message, slot) }
}

fn object_or_null(message: &Message, slot: Slot) -> Result<Option<Bytes>, HeadError> {
    if message.field_is(slot, Json::Null) { Ok(None) } else { object(message, slot) }
}

fn token(message: &Message, slot: Slot) -> Result<Option<Bytes>, HeadError> {
    match message.field(slot) {
        None => Ok(None),
        Some(span) => {
            Id::from_span(span, message.bytes()).ok_or(HeadError::NotAToken(label(slot)))?;
            Ok(Some(message.bytes().slice(span.range())))
        }
    }
}

/// The path below `params`, for messages to people.
fn label(slot: Slot) -> &'static str {
    match slot {
        Slot::Name => "name",
        Slot::Uri => "uri",
        Slot::TaskId => "taskId",
        Slot::Cursor => "cursor",
        Slot::Arguments => "arguments",
        Slot::ProtocolVersion => "protocolVersion",
        Slot::Capabilities => "capabilities",
        Slot::ClientInfo => "clientInfo",
        Slot::Level => "level",
        Slot::RequestId => "requestId",
        Slot::ProgressToken => "progressToken",
        Slot::Notifications => "notifications",
        Slot::InputResponses => "inputResponses",
        Slot::RequestState => "requestState",
        Slot::Ref => "ref",
        Slot::RefName => "ref.name",
        Slot::RefUri => "ref.uri",
        Slot::Meta => "_meta",
        Slot::MetaVersion => "_meta.io.modelcontextprotocol/protocolVersion",
        Slot::MetaCapabilities => "_meta.io.modelcontextprotocol/clientCapabilities",
        Slot::MetaClientInfo => "_meta.io.modelcontextprotocol/clientInfo",
        Slot::MetaLogLevel => "_meta.io.modelcontextprotocol/logLevel",
        Slot::MetaProgressToken => "_meta.progressToken",
        _ => "field",
    }
}

#[cfg(test)]
mod tests;

//! What bounds a document, and why one is refused. The scan and the envelope share the list, so that every refusal has
//! one stable name wherever it is found.

use thiserror::Error;

/// Bounds on one document. Its size is bounded by whoever reads the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Objects and arrays inside one another, the outermost counted.
    pub max_depth: u16,
    /// Keys of all objects of the document together.
    pub max_keys: u32,
}

impl Limits {
    /// For answers of servers: a list of 10 000 tools has far more keys than any request.
    pub const RESPONSE: Self = Self { max_depth: 64, max_keys: 1_000_000 };

    /// For text that has passed a stricter scan before.
    pub(crate) const TRUSTED: Self = Self { max_depth: 128, max_keys: u32::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_depth: 64, max_keys: 10_000 }
    }
}

/// Why a document or an envelope is refused. The message is for people, [`Fault::reason`] for metrics and audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    #[error("the text is larger than 4 GiB")]
    TooLarge,
    #[error("the text starts with a byte order mark")]
    ByteOrderMark,
    #[error("the text is not valid UTF-8")]
    InvalidUtf8,
    #[error("the text contains a NUL character")]
    Nul,
    #[error("a string contains a lone surrogate")]
    LoneSurrogate,
    #[error("the text is not valid JSON")]
    InvalidJson,
    #[error("a number is too large for a double")]
    NumberOutOfRange,
    #[error("something follows the JSON text")]
    TrailingData,
    #[error("the text is not a JSON object")]
    NotAnObject,
    #[error("batches are not accepted; send one message per POST")]
    Batch,
    #[error("the batch is empty or has too many messages")]
    BatchSize,
    #[error("the text is nested too deeply")]
    TooDeep,
    #[error("the text has too many keys")]
    TooManyKeys,
    #[error("an object has the same key twice")]
    DuplicateKey,
    #[error("a key differs from a known key only in the case of its letters")]
    CaseFoldedKey,
    #[error("`jsonrpc` must be \"2.0\"")]
    BadJsonrpc,
    #[error("`id` must be a string or an integer of reasonable length")]
    BadId,
    #[error("`method` must be a string")]
    BadMethod,
    #[error("`params` must be an object")]
    BadParams,
    #[error("`error` must be an object")]
    BadError,
    #[error("the object is neither a request, a notification nor a response")]
    NotAMessage,
    #[error("the list in the result is not an array of objects")]
    BadList,
}

impl Fault {
    /// A stable name in `snake_case`, for metrics, audit and tests.
    pub fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::ByteOrderMark => "byte_order_mark",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::Nul => "nul",
            Self::LoneSurrogate => "lone_surrogate",
            Self::InvalidJson => "invalid_json",
            Self::NumberOutOfRange => "number_out_of_range",
            Self::TrailingData => "trailing_data",
            Self::NotAnObject => "not_an_object",
            Self::Batch => "batch",
            Self::BatchSize => "batch_size",
            Self::TooDeep => "too_deep",
            Self::TooManyKeys => "too_many_keys",
            Self::DuplicateKey => "duplicate_key",
            Self::CaseFoldedKey => "case_folded_key",
            Self::BadJsonrpc => "bad_jsonrpc",
            Self::BadId => "bad_id",
            Self::BadMethod => "bad_method",
            Self::BadParams => "bad_params",
            Self::BadError => "bad_error",
            Self::NotAMessage => "not_a_message",
            Self::BadList => "bad_list",
        }
    }
}

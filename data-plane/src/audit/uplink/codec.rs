//! Upload requests whose events stay the bytes that lie in the spool: on the wire the same as the contract's
//! messages, without taking every record apart and putting it together again.

use bytes::{Buf as _, Bytes};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};
use waffles_proto::audit::v1 as pb;

/// `UploadRequest`. At most one of the fields is there.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) hello: Option<pb::UploadHello>,
    #[prost(message, optional, tag = "2")]
    pub(super) batch: Option<RawBatch>,
    #[prost(message, optional, tag = "3")]
    pub(super) health: Option<pb::Health>,
}

/// `Batch`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawBatch {
    #[prost(message, repeated, tag = "1")]
    pub(super) events: Vec<RawEvent>,
    #[prost(uint64, tag = "2")]
    pub(super) lost: u64,
}

/// `SequencedEvent`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RawEvent {
    #[prost(uint64, tag = "1")]
    pub(super) sequence: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) event: Bytes,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) hash: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Codec;

impl tonic::codec::Codec for Codec {
    type Encode = RawRequest;
    type Decode = pb::UploadResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Codec {
    type Item = RawRequest;
    type Error = Status;

    fn encode(&mut self, item: RawRequest, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Codec {
    type Item = pb::UploadResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<pb::UploadResponse>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        let receipt = pb::UploadResponse::decode(message);
        receipt.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_requests_are_the_contract_s_on_the_wire() {
        let event = pb::Event { id: "x".into(), http_status: 200, ..pb::Event::default() };
        let raw = RawEvent { sequence: 7, event: event.encode_to_vec().into(), hash: vec![5; 32] };
        let batch =
            RawRequest { batch: Some(RawBatch { events: vec![raw], lost: 3 }), ..RawRequest::default() };
        let sequenced = pb::SequencedEvent { sequence: 7, event: Some(event), hash: vec![5; 32] };
        let message = pb::upload_request::Message::Batch(pb::Batch { events: vec![sequenced], lost: 3 });
        let contract = pb::UploadRequest { message: Some(message) };
        assert_eq!(batch.encode_to_vec(), contract.encode_to_vec());

        let hello = pb::UploadHello { proxy_id: "p".into(), spool_id: "s".into() };
        let raw = RawRequest { hello: Some(hello.clone()), ..RawRequest::default() };
        let contract = pb::UploadRequest { message: Some(pb::upload_request::Message::Hello(hello)) };
        assert_eq!(raw.encode_to_vec(), contract.encode_to_vec());

        let health = pb::Health { revision: 4, ..pb::Health::default() };
        let raw = RawRequest { health: Some(health.clone()), ..RawRequest::default() };
        let contract = pb::UploadRequest { message: Some(pb::upload_request::Message::Health(health)) };
        assert_eq!(raw.encode_to_vec(), contract.encode_to_vec());
    }
}

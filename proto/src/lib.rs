//! The generated types of the contracts in `waffles/`, nothing else. Messages by default; service stubs
//! behind the feature `rpc`.

#![allow(clippy::all, missing_docs, unreachable_pub, reason = "generated code")]

/// The descriptors of every contract, for gRPC reflection (`google.protobuf.FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod audit {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.audit.v1.rs"));
    }
}

pub mod auth {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.auth.v1.rs"));
    }
}

pub mod discovery {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.discovery.v1.rs"));
    }
}

pub mod policy {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.policy.v1.rs"));
    }
}

pub mod proxy {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.proxy.v1.rs"));
    }
}

pub mod registry {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.registry.v1.rs"));
    }
}

pub mod tenant {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.tenant.v1.rs"));
    }
}

pub mod secret {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/waffles.secret.v1.rs"));
    }
}

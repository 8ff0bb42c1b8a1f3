//! cratemill-stack

//! QUIC endpoints.

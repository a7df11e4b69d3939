//! The suite that every transport must pass.

mod common;

raftkv::transport_conformance!(raftkv::testing::conformance::connections::OverTcp(common::Tarpc));

//! Peers that prove who they are, those that can't, and the suites over TLS.

mod common;

raftkv::tls_conformance!(common::Tarpc);

mod delivery {
    use raftkv::testing::conformance::connections::{OverTcp, Protected};

    raftkv::transport_conformance!(OverTcp(Protected::new(super::common::Tarpc)));
}

mod connections {
    use raftkv::testing::conformance::connections::Protected;

    raftkv::connection_conformance!(@protected Protected::new(super::common::Tarpc));
}

//! A data plane in this process, for tests of the control plane.

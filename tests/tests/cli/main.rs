//! What users of `gwctl` type and read: the real program against a control plane in this process, whose data
//! plane is in memory. No root needed.

mod alone;
mod revision;
mod support;
mod talk;
mod top;

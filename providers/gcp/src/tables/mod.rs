//! What the provider knows about Google Cloud without asking it: machines, prices, errors and zones. Each row or group names its
//! source and the date that the source states.

pub mod errors;
pub mod machines;
pub mod prices;
pub mod zones;

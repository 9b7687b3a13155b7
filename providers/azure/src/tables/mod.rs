//! What is known of Azure without asking: error codes, machine sizes, prices, regions. Each row has its source.

pub mod errors;
pub mod machines;
pub mod prices;
pub mod zones;

//! What most commands use.

pub use serde_json::{Value, json};
pub use textnlp_provider::units::counted;

pub use crate::progress::Progress;
pub use crate::report::{Console, Exit, Failure, Success, size};
pub use crate::session::{ChosenEnvironment, Session};

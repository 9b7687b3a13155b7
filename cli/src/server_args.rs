//! The arguments that name a server to call.

use camino::Utf8PathBuf;
use clap::Args;

/// The server to call, if it is not the environment's.
#[derive(Debug, Clone, Default, Args)]
pub struct OtherServer {
    /// Base URL of another server
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// API key for that server [default: with --address TEXTNLP_API_KEY, else the environment's first key; `load` creates a
    /// temporary one]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// CA certificate of that server
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<Utf8PathBuf>,
}

impl OtherServer {
    /// The key of the flags. The variable's key is for a server that the caller names, not for one that a state names.
    pub fn key(&self) -> Option<String> {
        let variable = || self.address.as_ref().and_then(|_| std::env::var("TEXTNLP_API_KEY").ok());
        self.api_key.clone().or_else(variable).filter(|key| !key.is_empty())
    }
}

//! temp
mod plain;
use bytes::Bytes;
pub enum Event { Stdout(Bytes), Stderr(Bytes), Exit(u32), Signal { name: String, core_dumped: bool }, Eof, Closed, Lost(String) }
pub struct Exec { pub input: tokio::io::DuplexStream, pub output: tokio::sync::mpsc::Receiver<Event>, pub host_key: String }

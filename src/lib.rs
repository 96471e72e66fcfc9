//! jobcell runs other people's jobs, each in its own sealed, single-use cell.
pub mod job;

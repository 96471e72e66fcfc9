//! Schemas of what is said of jobs. Mirrors of `crate::job`, which knows nothing of schemas: nothing is ever made of these
//! types. The tests hold real documents to them, and let no field pass that is not here.

#![expect(dead_code, reason = "the types are read by a derive only")]

mod asked;
mod outcome;
mod seen;
mod spec;
mod words;

pub(crate) use asked::*;
pub(crate) use outcome::*;
pub(crate) use seen::*;
pub(crate) use words::*;

//! Objects of JSON files, whose values are taken or refused by name. `null` is the same as absent.

use serde_json::Value as Json;

use super::CheckpointError;

/// An object, and where it is.
pub(crate) struct Object<'a> {
    /// The file's name.
    pub(crate) file: &'static str,
    pub(crate) json: &'a Json,
    /// What stands before its keys in an error.
    pub(crate) at: &'static str,
}

impl<'a> Object<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Json> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong<T>(&self, key: &str, expected: &'static str) -> Result<T, CheckpointError> {
        let found = self.get(key).map_or_else(|| "missing".to_owned(), Json::to_string);
        Err(CheckpointError::Value {
            file: self.file,
            key: format!("{}{key}", self.at),
            found,
            expected,
        })
    }

    /// None if it is missing or null. Its range is checked where the description is read.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, CheckpointError> {
        match self.get(key).map(Json::as_u64) {
            Some(None) => self.wrong(key, "an integer from 0 on"),
            Some(found) => Ok(found),
            None => Ok(None),
        }
    }

    /// One that later arithmetic is done with, and that every model has far below its maximum.
    pub(crate) fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        let number = self.number(key)?.and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| (1..=1 << 24).contains(number)) {
            Some(number) => Ok(number),
            None => self.wrong(key, "an integer from 1 to 16777216"),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        match self.get(key).map(Json::as_f64) {
            Some(None) => self.wrong(key, "a number"),
            Some(found) => Ok(found),
            None => Ok(None),
        }
    }

    pub(crate) fn needed_float(&self, key: &str) -> Result<f64, CheckpointError> {
        self.float(key)?.map_or_else(|| self.wrong(key, "a number"), Ok)
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Vec<f64>, CheckpointError> {
        let items = self.get(key).and_then(Json::as_array);
        let floats = items.and_then(|items| items.iter().map(Json::as_f64).collect());
        floats.map_or_else(|| self.wrong(key, "an array of numbers"), Ok)
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, CheckpointError> {
        match self.get(key) {
            None => Ok(false),
            Some(Json::Bool(flag)) => Ok(*flag),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Json::as_str)
    }

    /// What would be computed in another way than we do.
    pub(crate) fn must_be(
        &self,
        key: &str,
        value: &Json,
        expected: &'static str,
    ) -> Result<(), CheckpointError> {
        match self.get(key) {
            Some(found) if found != value => self.wrong(key, expected),
            _ => Ok(()),
        }
    }
}

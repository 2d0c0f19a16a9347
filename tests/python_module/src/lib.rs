//! An extension module of Python that contains pinfold, as a new user writes it.

use pinfold::blocking::Supervisor;
use pinfold::{Command, Error};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

fn failed(error: Error) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// Starts jobs; none of them outlives the interpreter.
#[pyclass]
struct Jobs(Supervisor);

#[pymethods]
impl Jobs {
    /// With `guard`, the path of a program that is executed from memory, for example a program that is shipped in the
    /// module.
    #[new]
    #[pyo3(signature = (guard=None))]
    fn new(py: Python<'_>, guard: Option<std::path::PathBuf>) -> PyResult<Self> {
        let mut builder = pinfold::Supervisor::builder();
        if let Some(guard) = guard {
            builder = builder.guard_program_bytes(std::fs::read(guard)?.leak());
        }
        py.detach(|| Supervisor::start_with(builder)).map(Self).map_err(failed)
    }

    /// Runs a script, and returns its exit code and the number of leftovers.
    fn run(&self, py: Python<'_>, script: &str) -> PyResult<(u8, u64)> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let report = py.detach(|| self.0.spawn(&command)?.wait()).map_err(failed)?;
        Ok((report.exit_code, report.leftovers.count))
    }
}

#[pymodule]
fn pinfold_module(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Jobs>()
}

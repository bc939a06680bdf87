//! How a verb fails, and with which exit code.

use std::process::ExitCode;

use super::output::note;
use crate::http::problem::Problem;

#[derive(Debug)]
pub enum Failure {
    /// What was asked makes no sense.
    Usage(String),
    TimedOut(String),
    /// The agent said no.
    Refused(Box<Problem>),
    Failed(anyhow::Error),
    /// Nobody reads what is printed: no failure, but an end.
    Unread,
}

impl Failure {
    /// Says why on standard error. The code is part of the contract.
    pub fn report(self) -> ExitCode {
        let code = self.code();
        match self {
            Self::Usage(why) | Self::TimedOut(why) => note(format!("sluice: {why}")),
            Self::Refused(problem) => note(format!("sluice: {}", problem.detail)),
            Self::Failed(error) => note(format!("sluice: {error:#}")),
            Self::Unread => {}
        }
        ExitCode::from(code)
    }

    fn code(&self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Refused(problem) if matches!(problem.status, 409 | 412) => 4,
            Self::Refused(problem) if matches!(problem.status, 408 | 504) => 3,
            // A parameter that makes no sense comes from an argument that makes none.
            Self::Refused(problem) if problem.status == 400 => 2,
            Self::Refused(_) | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::TimedOut(_) => 3,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Refused(Box::new(problem))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        let refused = |status| Failure::from(Problem::new(status, "no")).code();
        assert_eq!(refused(StatusCode::CONFLICT), 4);
        assert_eq!(refused(StatusCode::PRECONDITION_FAILED), 4);
        assert_eq!(refused(StatusCode::NOT_FOUND), 1);
        assert_eq!(refused(StatusCode::UNPROCESSABLE_ENTITY), 1);
        assert_eq!(refused(StatusCode::BAD_REQUEST), 2);
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(Failure::TimedOut(String::new()).code(), 3);
        assert_eq!(Failure::from(anyhow::anyhow!("x")).code(), 1);
    }
}

//! How a verb fails, and with which exit code.

use std::{fmt, process::ExitCode};

use super::output::note;
use crate::http::problem::Problem;

#[derive(Debug)]
pub enum Failure {
    /// What was asked makes no sense.
    Usage(String),
    TimedOut(String),
    /// The signal, and what to say.
    Interrupted(u8, String),
    /// The agent refused.
    Refused(Box<Problem>),
    /// No agent answers; one that is being replaced comes back.
    Unreachable(anyhow::Error),
    Failed(anyhow::Error),
    /// Nobody reads the output: an end, and no failure.
    Unread,
    /// What was compared is not the same.
    Differs,
    /// A comparison that could not be made: its 1 would say that something differs.
    Unanswered(Box<Failure>),
}

impl Failure {
    /// A setting or an argument that makes no sense.
    pub fn usage(why: anyhow::Error) -> Self {
        Self::Usage(format!("{why:#}"))
    }

    /// Says why on standard error. The code is part of the contract.
    pub fn report(self) -> ExitCode {
        if !self.is_silent() {
            note(format!("sluice: {self}"));
        }
        ExitCode::from(self.code())
    }

    fn is_silent(&self) -> bool {
        match self {
            Self::Unread | Self::Differs => true,
            Self::Unanswered(failure) => failure.is_silent(),
            _ => false,
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Unread => 0,
            Self::Differs => 1,
            Self::Unanswered(failure) => match failure.code() {
                1 => 2,
                code => code,
            },
            Self::Refused(problem) if matches!(problem.status, 409 | 412) => 4,
            Self::Refused(problem) if matches!(problem.status, 408 | 504) => 3,
            // A wrong parameter comes from a wrong argument.
            Self::Refused(problem) if problem.status == 400 => 2,
            Self::Refused(_) | Self::Unreachable(_) | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::TimedOut(_) => 3,
            // As shells do.
            Self::Interrupted(signal, _) => signal.saturating_add(128),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::TimedOut(why) | Self::Interrupted(_, why) => f.write_str(why),
            Self::Refused(problem) => f.write_str(&problem.detail),
            Self::Unreachable(error) | Self::Failed(error) => write!(f, "{error:#}"),
            Self::Unanswered(failure) => failure.fmt(f),
            Self::Unread | Self::Differs => Ok(()),
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
        assert_eq!((Failure::Differs.code(), Failure::Unread.code()), (1, 0));
        let unanswered = |status| Failure::Unanswered(Box::new(Problem::new(status, "no").into())).code();
        assert_eq!(unanswered(StatusCode::NOT_FOUND), 2);
        assert_eq!(unanswered(StatusCode::CONFLICT), 4);
        assert_eq!(Failure::Interrupted(2, String::new()).code(), 130);
        assert_eq!(Failure::from(anyhow::anyhow!("x")).code(), 1);
    }
}

//! The rule, line by line.

use super::*;

const ANSWERED: Activity = Activity {
    now: 1000,
    last_sent: 500,
    last_received: 510,
    bytes_sent: 80,
    bytes_received: 4096,
    unacknowledged: 0,
    unread: 0,
    last_segment: 4096,
    keepalive: 0,
    hung_up: 0,
    segments_sent: 5,
    spoke_for: 60_000,
    multipath: 0,
    written: 81,
    answered: 0,
    ping_pong: 1,
    acknowledged_late: 0,
};

/// What a caller sees after a TLS handshake, whether its first request is answered or not.
const TICKETS: Activity =
    Activity { bytes_sent: 700, bytes_received: 1500, segments_sent: 3, spoke_for: 12, ..ANSWERED };

#[test]
fn every_line_of_the_rule() {
    let same_jiffy = Activity { last_sent: 510, ..ANSWERED };
    let table = [
        ("answered and read", ANSWERED, Flight::Idle),
        ("not acknowledged", Activity { unacknowledged: 1, ..ANSWERED }, Flight::InFlight),
        ("answer not read", Activity { unread: 1, ..ANSWERED }, Flight::InFlight),
        ("a hole in the answer", Activity { last_segment: 0_u32.wrapping_sub(1448), ..ANSWERED }, Flight::InFlight),
        ("just established", Activity { bytes_sent: 0, bytes_received: 0, ..ANSWERED }, Flight::Beginning),
        ("first request out", Activity { bytes_received: 0, ..ANSWERED }, Flight::InFlight),
        ("next request out", Activity { last_sent: 511, ..ANSWERED }, Flight::InFlight),
        (
            "next request out and acknowledged",
            Activity { last_sent: 511, last_segment: 0, ..ANSWERED },
            Flight::InFlight,
        ),
        ("answered in one jiffy", same_jiffy, Flight::Idle),
        (
            "next request in the jiffy of the answer, acknowledged after it",
            Activity { last_segment: 0, ..same_jiffy },
            Flight::InFlight,
        ),
        (
            "the same, long ago and kept alive",
            Activity { last_segment: 0, keepalive: 490, ..same_jiffy },
            Flight::Unclear,
        ),
        (
            "the same, and acknowledged clearly later than the answer came",
            Activity { last_segment: 0, keepalive: 490, acknowledged_late: 1, ..same_jiffy },
            Flight::InFlight,
        ),
        (
            "answered in one jiffy, kept alive, and seen before",
            Activity { last_segment: 0, keepalive: 490, answered: 1, ..same_jiffy },
            Flight::Idle,
        ),
        (
            "answered in one jiffy, kept alive, and acknowledged alone",
            Activity { last_segment: 0, keepalive: 490, ping_pong: 0, ..same_jiffy },
            Flight::Idle,
        ),
        (
            "the same where the kernel does not tell",
            Activity { last_segment: 0, keepalive: 490, ping_pong: UNKNOWN, ..same_jiffy },
            Flight::Unclear,
        ),
        (
            "the same, before the first probe",
            Activity { last_segment: 0, keepalive: 491, ..same_jiffy },
            Flight::InFlight,
        ),
        ("answered, then kept alive", Activity { last_segment: 0, keepalive: 490, ..ANSWERED }, Flight::Idle),
        (
            "two requests, the second acknowledged after the first answer",
            Activity { last_segment: 0, ..ANSWERED },
            Flight::InFlight,
        ),
        (
            "the same, kept alive",
            Activity { last_segment: 0, keepalive: 490, acknowledged_late: 1, ..ANSWERED },
            Flight::InFlight,
        ),
        ("pushed by the server", Activity { bytes_sent: 0, ..ANSWERED }, Flight::Idle),
        (
            "request out, jiffies wrapped",
            Activity { last_sent: 3, last_received: u32::MAX, ..ANSWERED },
            Flight::InFlight,
        ),
        ("answered, jiffies wrapped", Activity { last_sent: u32::MAX, last_received: 3, ..ANSWERED }, Flight::Idle),
        ("tickets, or the answer", TICKETS, Flight::Beginning),
        ("tickets in the same jiffy", Activity { last_sent: 510, ..TICKETS }, Flight::Beginning),
        ("a session resumed", Activity { bytes_received: 320, ..TICKETS }, Flight::Beginning),
        ("tickets long ago, then an answer", Activity { spoke_for: EARLY, ..TICKETS }, Flight::Idle),
        ("a request in one segment, answered", Activity { segments_sent: 1, ..TICKETS }, Flight::Idle),
        ("sent less than a handshake", Activity { bytes_sent: 199, ..TICKETS }, Flight::Idle),
        ("received less than a handshake", Activity { bytes_received: 199, ..TICKETS }, Flight::Idle),
        ("tickets, then the first request", Activity { last_sent: 511, ..TICKETS }, Flight::InFlight),
    ];
    for (what, activity, expected) in table {
        assert_eq!(activity.flight(Side::Caller), expected, "{what}");
    }
}

#[test]
fn a_server_sees_the_same_with_the_roles_exchanged() {
    let answered = Activity {
        last_sent: 510,
        last_received: 500,
        bytes_sent: 4096,
        bytes_received: 80,
        last_segment: 0,
        ..ANSWERED
    };
    let accepted = Activity { spoke_for: u32::MAX, ..answered };
    let same_jiffy = Activity { last_received: 510, ..answered };
    let table = [
        ("answered", answered, Flight::Idle),
        ("answer not acknowledged", Activity { unacknowledged: 1, ..answered }, Flight::InFlight),
        ("request not read", Activity { unread: 1, ..answered }, Flight::InFlight),
        ("accepted, nothing said", Activity { bytes_sent: 0, bytes_received: 0, ..answered }, Flight::Beginning),
        ("first request in", Activity { bytes_sent: 0, ..answered }, Flight::InFlight),
        ("next request in", Activity { last_received: 511, ..answered }, Flight::InFlight),
        ("answered in one jiffy", same_jiffy, Flight::Idle),
        ("next request in the jiffy of the answer", Activity { last_segment: 80, ..same_jiffy }, Flight::InFlight),
        ("answered in one jiffy, kept alive", Activity { keepalive: 490, ..same_jiffy }, Flight::Unclear),
        (
            "the same, acknowledged clearly later than the request came",
            Activity { keepalive: 490, acknowledged_late: 1, ..same_jiffy },
            Flight::Idle,
        ),
        ("it sent later, and not right after", Activity { ping_pong: 0, keepalive: 490, ..answered }, Flight::Idle),
        (
            "a request in one jiffy with an answer, kept alive, and acknowledged alone",
            Activity { ping_pong: 0, keepalive: 490, ..same_jiffy },
            Flight::InFlight,
        ),
        ("it greets", Activity { bytes_received: 0, ..answered }, Flight::Idle),
        ("answered, or tickets sent", Activity { bytes_received: 700, ..accepted }, Flight::Beginning),
        ("too much for tickets", Activity { bytes_received: 700, segments_sent: 9, ..accepted }, Flight::Idle),
    ];
    for (what, activity, expected) in table {
        assert_eq!(activity.flight(Side::Server), expected, "{what}");
    }
}

#[test]
fn a_fin_is_no_data() {
    let (fin_wait1, close_wait) = (4, 8);
    let fin_out = Activity { unacknowledged: 1, ..ANSWERED };
    assert_eq!(fin_out.without_fin(fin_wait1).flight(Side::Caller), Flight::Idle);
    // It came in a segment of its own, as after a time limit of the server.
    let fin_in = Activity { unread: 1, last_segment: 1, ..ANSWERED };
    assert_eq!(fin_in.without_fin(close_wait).flight(Side::Caller), Flight::Idle);
    let unanswered = Activity { last_sent: 600, ..fin_in };
    assert_eq!(unanswered.without_fin(close_wait).flight(Side::Caller), Flight::Idle);
    assert_eq!(fin_in.without_fin(1).flight(Side::Caller), Flight::InFlight);
    assert_eq!(Activity { unread: 2, ..ANSWERED }.without_fin(close_wait).flight(Side::Caller), Flight::InFlight);
}

#[test]
fn quiet_is_counted_from_the_last_word_and_never_wraps() {
    assert_eq!(ANSWERED.quiet(), 490);
    assert_eq!(Activity { now: 5, last_sent: u32::MAX - 4, last_received: 0, ..ANSWERED }.quiet(), 5);
    assert_eq!(Activity { now: 509, ..ANSWERED }.quiet(), 0, "received on another CPU in between");
}

#[test]
fn a_server_is_done_with_a_caller_that_was_answered_and_has_closed() {
    let close_wait = 8;
    let server = Activity { last_sent: 510, last_received: 500, unread: 1, last_segment: 1, ..ANSWERED };
    assert_eq!(server.without_fin(close_wait).flight(Side::Server), Flight::Idle);
    let asked = Activity { last_received: 511, ..server };
    assert_eq!(asked.without_fin(close_wait).flight(Side::Server), Flight::InFlight);
    let with_the_request = Activity { last_received: 510, last_segment: 81, ..server };
    assert_eq!(with_the_request.without_fin(close_wait).flight(Side::Server), Flight::InFlight);
    let same_jiffy = Activity { last_received: 510, ..server };
    assert_eq!(same_jiffy.without_fin(close_wait).flight(Side::Server), Flight::Unclear);
}

#[test]
fn a_conversation_lasts_from_the_establishment_to_the_last_word() {
    let (second, hz) = (1_000_000_000, 250);
    // 490 jiffies of quiet are 1960 ms.
    assert_eq!(ANSWERED.begun(second, 3 * second, hz).spoke_for, 40);
    assert_eq!(ANSWERED.begun(second, 100 * second, hz).spoke_for, 97_040);
    assert_eq!(ANSWERED.begun(second, second, hz).spoke_for, 0);
}

#[test]
fn what_is_unclear_is_busy_and_a_beginning_until_it_was_quiet_for_long() {
    let beginning = Activity { bytes_sent: 0, bytes_received: 0, ..ANSWERED };
    assert!(beginning.is_busy(Side::Caller, 123), "490 jiffies of quiet are less than 4 x 123");
    assert!(!beginning.is_busy(Side::Caller, 122));
    let unclear = Activity { last_sent: 510, last_segment: 0, keepalive: 1, ..ANSWERED };
    assert!(unclear.is_busy(Side::Caller, 0));
    assert!(!ANSWERED.is_busy(Side::Caller, u32::MAX));
    assert!(Activity { unread: 1, ..ANSWERED }.is_busy(Side::Caller, 0));
}

#[test]
fn only_what_is_there_shows_an_answer() {
    assert!(ANSWERED.shows_answer() && Activity { last_sent: 510, unread: 1, ..ANSWERED }.shows_answer());
    for hidden in [
        Activity { last_segment: 0, ..ANSWERED },
        Activity { last_segment: 0_u32.wrapping_sub(1448), ..ANSWERED },
        Activity { last_sent: 511, ..ANSWERED },
        Activity { unacknowledged: 1, ..ANSWERED },
        Activity { bytes_received: 0, ..ANSWERED },
    ] {
        assert!(!hidden.shows_answer(), "{hidden:?}");
    }
}

#[test]
fn an_acknowledgement_is_late_by_more_than_clocks_differ() {
    // 100 jiffies are 400 ms.
    assert!(is_late(379, 1000, 900, 250) && !is_late(380, 1000, 900, 250) && !is_late(500, 1000, 900, 250));
    assert!(is_late(0, 5, u32::MAX - 4, 100));
}

#[test]
fn only_what_was_quiet_for_long_enough_may_be_closed() {
    assert!(ANSWERED.may_close(Side::Caller, 490));
    assert!(!ANSWERED.may_close(Side::Caller, 491));
    let unclear = Activity { last_sent: 510, last_segment: 0, keepalive: 1, ..ANSWERED };
    assert!(!unclear.may_close(Side::Caller, 1));
    assert!(!Activity { unacknowledged: 1, ..ANSWERED }.may_close(Side::Caller, 0));
    assert!(!Activity { multipath: 1, ..ANSWERED }.may_close(Side::Caller, 0));
}

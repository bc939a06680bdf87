//! The sections of the report.

use super::{
    super::readings::{Measure, Readings, Value},
    table::{Cell, Column, DIRECT, Good, Judged, rows},
};
use crate::page::{Bar, Chart, Line, Section};

/// Numbers of services of the measurements on many.
const SIZES: [u32; 3] = [1, 1000, 10_000];

/// All of them; the summary first.
pub fn all(host: &Readings, vm: Option<&Readings>) -> Vec<Section> {
    vec![
        summary(host, vm),
        connections(host, vm),
        established(host),
        exactness(host, vm),
        zero(host, vm),
        many(host, vm),
        loss(host, vm),
        behaviour(host, vm),
        notes(host, vm),
    ]
}

fn section(title: &str, text: &str, columns: Vec<Column>, host: &Readings, vm: Option<&Readings>) -> Section {
    let mut all = rows(&columns, host, "");
    all.extend(vm.into_iter().flat_map(|vm| rows(&columns, vm, ", in the virtual machine")));
    let heads = [String::new()].into_iter().chain(columns.into_iter().map(|column| column.head)).collect();
    Section { title: title.to_owned(), text: text.to_owned(), columns: heads, rows: all, charts: Vec::new() }
}

fn summary(host: &Readings, vm: Option<&Readings>) -> Section {
    let ratio = |measure| move |readings: &Readings, who: &str| Cell::over_direct(readings, who, measure);
    let mut columns = vec![
        Column::new("new connections/s over direct", Good::Much, ratio(Measure::Rate)),
        Column::new("connect, 99th percentile over direct", Good::Little, ratio(Measure::Connect99)),
        Column::new("processor time a connection over direct", Good::Little, ratio(Measure::ConnectWork)),
        Column::new("requests/s on 1,000 connections over direct", Good::Much, ratio(Measure::ManyRate)),
        Column::new("throughput over direct", Good::Much, ratio(Measure::Throughput)),
        Column::new("error of a share of 5 %, points", Good::Little, |readings, who| {
            Cell::short(readings.first(who, Measure::Share5), |value| format!("{value:.2}")).by_median()
        }),
    ];
    for services in SIZES {
        let head = format!("time to zero, {}", services_of(services));
        columns.push(Column::new(&head, Good::Little, move |readings, who| last(readings, who, services, None, false)));
    }
    columns.push(Column::new("requests lost at a zero, at most", Good::Little, |readings, who| {
        Cell::most(readings.first(who, Measure::LostAtZero), count)
    }));
    let text = "Time to zero is from the command to the last new connection on a node that every service has a backend on; \
                \"<\" means sooner than the longest pause between two connections before. A ratio of 1.00 is that of direct. \
                Ratios are of the same round. Rows of the virtual machine are emulated: compare them with the virtual \
                machine's direct only. Sluice by HTTP goes to a running agent, nft and ipvsadm include their process start: \
                `sluice zero` in the whole report is the like-for-like row.";
    section("Summary", text, columns, host, vm)
}

fn connections(host: &Readings, vm: Option<&Readings>) -> Section {
    let cell = |measure, shown: fn(f64) -> String| {
        move |readings: &Readings, who: &str| Cell::of(readings.first(who, measure), shown)
    };
    let columns = vec![
        Column::new("new connections/s", Good::Much, cell(Measure::Rate, count)),
        Column::new("over direct", Good::Much, |readings, who| Cell::over_direct(readings, who, Measure::Rate)),
        Column::new("median", Good::Little, cell(Measure::ConnectMedian, micros)),
        Column::new("99th percentile", Good::Little, cell(Measure::Connect99, micros)),
        Column::new("99.9th percentile", Good::Little, cell(Measure::Connect999, micros)),
        Column::new("processor time each", Good::Little, cell(Measure::ConnectWork, micros)),
    ];
    let text = "Four clients open one connection after the other; the server sends one byte and closes. Times are from \
                connect() to that end, so that a proxy's second connection counts. The load is a closed loop on processors that \
                are shared with what steers and with the servers: ratios dilute, and percentiles suffer from coordinated \
                omission. A percentile is shown where there are ten connections above it in each round.";
    let charts = vec![
        bars("New connections", "1/s", host, Measure::Rate),
        bars("Time of a new connection, 99th percentile", "us", host, Measure::Connect99),
        bars("Processor time of a new connection", "us", host, Measure::ConnectWork),
    ];
    Section { charts, ..section("New connections", text, columns, host, vm) }
}

fn established(host: &Readings) -> Section {
    let cell = |measure, shown: fn(f64) -> String| {
        move |readings: &Readings, who: &str| Cell::of(readings.first(who, measure), shown)
    };
    let columns = vec![
        Column::new("requests/s, 1 connection", Good::Much, cell(Measure::OneRate, count)),
        Column::new("median", Good::Little, cell(Measure::OneMedian, micros)),
        Column::new("99th percentile", Good::Little, cell(Measure::One99, micros)),
        Column::new("requests/s, 1,000 connections", Good::Much, cell(Measure::ManyRate, count)),
        Column::new("median", Good::Little, cell(Measure::ManyMedian, micros)),
        Column::new("99th percentile", Good::Little, cell(Measure::Many99, micros)),
        Column::new("stream, Gbit/s", Good::Much, cell(Measure::Throughput, |value| format!("{value:.1}"))),
        Column::new("processor time a GB", Good::Little, cell(Measure::StreamWork, |value| format!("{value:.0} ms"))),
    ];
    let text = "Requests by wrk to nginx, a stream by iperf3 over one connection. 1,000 connections of wrk's three threads \
                are 999. Not measured in the virtual machine.";
    let charts = vec![
        bars("Requests over 1,000 connections", "1/s", host, Measure::ManyRate),
        bars("Stream over one connection", "Gbit/s", host, Measure::Throughput),
    ];
    Section { charts, ..section("Established connections", text, columns, host, None) }
}

fn exactness(host: &Readings, vm: Option<&Readings>) -> Section {
    let cell = |measure| {
        move |readings: &Readings, who: &str| {
            Cell::of(readings.first(who, measure), |value| format!("{value:.3}")).by_median()
        }
    };
    let columns = vec![
        Column::new("5 % beside 95 %", Good::Little, cell(Measure::Share5)),
        Column::new("0.1 % beside 99.9 %", Good::Little, cell(Measure::Share01)),
    ];
    let text = "Percentage points between the share that a light backend should have and what it has of 1,000 connections, \
                without the sign. Each figure is the mean of all runs. HAProxy's weights end at 256: a heavier backend is several \
                servers there. nftables draws at random; kube-proxy itself has no weights.";
    section("Exactness", text, columns, host, vm)
}

fn zero(host: &Readings, vm: Option<&Readings>) -> Section {
    let mut all = Vec::new();
    let mut lines = Vec::new();
    for (readings, suffix) in [(Some(host), ""), (vm, ", in the virtual machine")] {
        let Some(readings) = readings else { continue };
        for who in &readings.who {
            for way in ways(readings, who) {
                let mut row = vec![format!("{who}, {way}{suffix}")];
                for services in SIZES {
                    row.push(last(readings, who, services, Some(&way), true).text);
                    let command = find(readings, who, Measure::Command, services, &way);
                    row.push(Cell::of(command, millis).text);
                }
                all.push(row);
                if suffix.is_empty() {
                    lines.push(Line { label: format!("{who}, {way}"), points: points(readings, who, &way) });
                }
            }
        }
    }
    let mut columns = vec![String::new()];
    for services in SIZES {
        columns.push(format!("last connection, {}", services_of(services)));
        columns.push("command".to_owned());
    }
    let text = "A node that every service has a backend on gets no new connections any more: from the command to the last \
                new connection there (over up to 100 services, the first and the last among them), and until the command \
                says that it is done. \"<\" means sooner than the longest pause between two connections in the 0.4 s before; the \
                plot shows that pause then. Sluice by HTTP goes to a running agent, nft and ipvsadm include their process \
                start: `sluice zero` is the like-for-like row. The cost of nft depends much on its version, which is \
                above (1.0.6 is Debian 12's); kube-proxy also delays changes (minSyncPeriod, 1 s), which is not counted. \
                nginx ends its old workers 100 ms after the start of new ones, by design.";
    let chart = Chart::Lines {
        title: "Time to zero".to_owned(),
        x: "services".to_owned(),
        y: "ms to the last new connection".to_owned(),
        lines,
    };
    Section { title: "Time to zero".to_owned(), text: text.to_owned(), columns, rows: all, charts: vec![chart] }
}

fn many(host: &Readings, vm: Option<&Readings>) -> Section {
    let mut columns = Vec::new();
    let size = |bytes: f64| format!("{:.1} KiB", bytes / 1024.0);
    for services in [1000, 10_000] {
        let load = move |readings: &Readings, who: &str| Cell::of(readings.with(who, Measure::Load, services), millis);
        columns.push(Column::new(&format!("load {} services", thousands(services)), Good::Little, load));
        columns.push(Column::new("into a running agent", Good::Neither, move |readings, who| {
            Cell::of(readings.with(who, Measure::LoadRunning, services), millis)
        }));
        columns.push(Column::new("memory over services", Good::Little, move |readings, who| {
            Cell::of(readings.with(who, Measure::Memory, services), size)
        }));
        columns.push(Column::new("each further one", Good::Neither, move |readings, who| {
            Cell::of(readings.with(who, Measure::MemoryGrowth, services), size)
        }));
    }
    let text = "Services of three backends each. Loading is from the moment that the configuration is there in memory to the \
                moment that it serves, with the start of the process: for proxies until they listen for the last service, \
                for Sluice the start of the agent and one request; the second figure is that request alone. Memory is \
                all of it divided by the services, which is judged, and what each further service adds. Of processes it is \
                the proportional set (Pss), of Sluice its maps too, as the kernel accounts them: they are made for 131,072 \
                backends from the start. Of nftables and IPVS it is what the kernel's unreclaimable slabs, per-CPU memory and \
                vmalloc have grown by, which is coarse: \"-\" where more than a quarter of it does not go with the services. \
                Beyond 1,000 services HAProxy and nginx have no socket for each thread, because of the limit of open files, and \
                nginx no zone that its workers share. What the kernel keeps for proxies' sockets is not counted.";
    section("Many services", text, columns, host, vm)
}

fn loss(host: &Readings, vm: Option<&Readings>) -> Section {
    let columns = vec![
        Column::new("lost at a zero", Good::Little, |readings, who| {
            Cell::of(readings.first(who, Measure::LostAtZero), count)
        }),
        Column::new("lost at a drain", Good::Little, |readings, who| {
            Cell::of(readings.first(who, Measure::LostAtDrain), count)
        }),
        Column::new("last answer after the drain's command", Good::Neither, |readings, who| {
            Cell::of(readings.first(who, Measure::Drained), |value| format!("{value:.1} s"))
        }),
        Column::new("drains by", Good::Neither, |readings, who| {
            let way = readings.of(who, Measure::LostAtDrain).next().map_or("", |reading| &reading.way);
            Cell::words(way)
        }),
    ];
    let text = "Requests without an answer while a node leaves. Kept connections are expected to lose nothing at a zero, for \
                everybody. At a drain proxies work in TCP mode here; in HTTP mode they could close kept connections between \
                two requests. nginx's drain is its limit for old workers (2 s), HAProxy's ends the kept connections at once. \
                Sluice closes what was idle for 100 ms, the least that can be set: with its default of 2 s these clients, who \
                think for 250 ms, would stay until the drain's deadline. At a zero: 32 clients with 2 ms between requests. At a drain: \
                48 clients keep their connections for good, each request takes 50 ms, and 250 ms lie between two. Clients look \
                whether a connection has ended before they write.";
    section("Lost requests", text, columns, host, vm)
}

fn behaviour(host: &Readings, vm: Option<&Readings>) -> Section {
    let columns = vec![
        Column::new("every weight is zero: a client sees", Good::Neither, |readings, who| {
            Cell::of(readings.first(who, Measure::NothingLeft), count)
        }),
        Column::new("affinity, and its backend is zeroed: the client", Good::Neither, |readings, who| {
            Cell::of(readings.first(who, Measure::Affinity), count)
        }),
    ];
    let text = "As real connections saw it. Affinity is by the client's address, in each candidate's own way.";
    section("Corners", text, columns, host, vm)
}

/// What is missing, and why.
fn notes(host: &Readings, vm: Option<&Readings>) -> Section {
    let mut rows = Vec::new();
    for (readings, suffix) in [(Some(host), ""), (vm, ", in the virtual machine")] {
        for reading in readings.into_iter().flat_map(|readings| &readings.all) {
            let (Measure::Note, Value::Words(words)) = (reading.measure, &reading.value) else { continue };
            let services = if reading.services == 0 { String::new() } else { thousands(reading.services) };
            rows.push(vec![format!("{}{suffix}", reading.who), reading.way.clone(), services, words.clone()]);
        }
    }
    let columns = ["", "measurement", "services", "note"].map(str::to_owned).to_vec();
    let text = if rows.is_empty() { "Nothing is missing." } else { "What is missing, and why." };
    let columns = if rows.is_empty() { Vec::new() } else { columns };
    Section { title: "Notes".to_owned(), text: text.to_owned(), columns, rows, charts: Vec::new() }
}

/// The time of the last connection; sooner than the gap between two is no time.
fn last(readings: &Readings, who: &str, services: u32, way: Option<&str>, long: bool) -> Cell {
    let usual = || readings.of(who, Measure::LastConnection).find(|reading| reading.services == services);
    let Some(way) = way.map(str::to_owned).or_else(|| usual().map(|reading| reading.way.clone())) else {
        return Cell::none();
    };
    let value = find(readings, who, Measure::LastConnection, services, &way);
    let gap = find(readings, who, Measure::Gap, services, &way).and_then(Value::median).unwrap_or_default();
    match value.and_then(Value::median) {
        Some(median) if median < gap => {
            let once = value.and_then(Value::greatest).filter(|high| *high > gap);
            let once = once.map(|high| format!(" (once {})", millis(high))).unwrap_or_default();
            Cell { value: Judged::Below(gap), text: format!("< {gap:.1} ms{once}") }
        }
        _ if long => Cell::of(value, millis),
        _ => Cell::short(value, millis),
    }
}

fn points(readings: &Readings, who: &str, way: &str) -> Vec<(f64, f64)> {
    let point = |services: &u32| {
        let of = |measure| find(readings, who, measure, *services, way).and_then(Value::median);
        Some((f64::from(*services), of(Measure::LastConnection)?.max(of(Measure::Gap)?)))
    };
    SIZES.iter().filter_map(point).collect()
}

fn ways(readings: &Readings, who: &str) -> Vec<String> {
    let mut ways: Vec<String> = Vec::new();
    for reading in readings.of(who, Measure::LastConnection) {
        if !ways.contains(&reading.way) {
            ways.push(reading.way.clone());
        }
    }
    ways
}

fn find<'a>(readings: &'a Readings, who: &str, measure: Measure, services: u32, way: &str) -> Option<&'a Value> {
    let found = readings.of(who, measure).find(|reading| reading.services == services && reading.way == way);
    found.map(|reading| &reading.value)
}

fn bars(title: &str, unit: &str, readings: &Readings, measure: Measure) -> Chart {
    let bar = |who: &String| match readings.first(who, measure)? {
        Value::Number { median, low, high, .. } => {
            let label = if who == DIRECT { "direct (the limit)" } else { who };
            Some(Bar { label: label.to_owned(), value: *median, low: *low, high: *high })
        }
        Value::Words(_) => None,
    };
    let bars = readings.who.iter().filter_map(bar).collect();
    Chart::Bars { title: title.to_owned(), unit: unit.to_owned(), log: false, bars }
}

fn count(value: f64) -> String {
    thousands(value.round() as u32)
}

fn micros(value: f64) -> String {
    if value >= 9_999.5 { format!("{:.1} ms", value / 1e3) } else { format!("{value:.0} us") }
}

fn millis(value: f64) -> String {
    match value {
        9_999.5.. => format!("{:.1} s", value / 1e3),
        99.5.. => format!("{value:.0} ms"),
        _ => format!("{value:.1} ms"),
    }
}

fn services_of(number: u32) -> String {
    if number == 1 { "1 service".to_owned() } else { format!("{} services", thousands(number)) }
}

/// 10000 is "10,000".
fn thousands(value: u32) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_have_commas() {
        assert_eq!([1, 1000, 123_456, 1_000_000].map(thousands), ["1", "1,000", "123,456", "1,000,000"]);
    }
}

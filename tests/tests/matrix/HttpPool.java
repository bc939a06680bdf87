// A client of the loss matrix: java.net.http.HttpClient, one for all threads, with its own pool.
// It speaks HTTP/1.1 without an offer of HTTP/2; all else is the library's default.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.LocalTime;
import java.time.temporal.ChronoUnit;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

public class HttpPool {
    static final Map<String, String> PATHS = Map.of(
            "quick", "/quick", "slow", "/slow", "chunked", "/chunked?parts=3&pause=3000", "poll", "/poll");
    static final String CLIENT = "java.net.http " + System.getProperty("java.version");
    static final int GRACE = 15; // seconds in which the last requests may end

    static final CountDownLatch stop = new CountDownLatch(1);
    static final Map<String, Long> errors = new TreeMap<>();
    static final Map<String, Long> servers = new TreeMap<>();
    static long requests, failed;

    public static void main(String[] arguments) throws Exception {
        var options = new HashMap<>(Map.of("--think", "20"));
        for (int at = 0; at + 1 < arguments.length; at += 2) {
            options.put(arguments[at], arguments[at + 1]);
        }
        String work = options.get("--work");
        if (!PATHS.containsKey(work)) {
            System.err.println(CLIENT + " has no work '" + work + "', only " + String.join(", ", PATHS.keySet()) + ".");
            System.exit(2);
        }
        var main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stop.countDown();
            try {
                main.join();
            } catch (InterruptedException ignored) {
            }
            Runtime.getRuntime().halt(0);
        }));

        var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        var url = options.get("--url").replaceAll("/$", "") + PATHS.get(work);
        var request = HttpRequest.newBuilder(URI.create(url)).build();
        double think = Double.parseDouble(options.get("--think"));
        List<Thread> workers = new ArrayList<>();
        for (int number = Integer.parseInt(options.get("--workers")); number > 0; number--) {
            var worker = new Thread(() -> {
                do {
                    try {
                        var answer = client.send(request, BodyHandlers.ofString());
                        var server = answer.headers().firstValue("x-server").orElse("");
                        check(work, answer.statusCode(), server, answer.body());
                        succeed(server);
                    } catch (Exception error) {
                        fail(error);
                    }
                } while (!over((long) (think * ThreadLocalRandom.current().nextDouble(0.5, 1.5))));
            });
            worker.setDaemon(true);
            worker.start();
            workers.add(worker);
        }
        over((long) (Double.parseDouble(options.get("--seconds")) * 1000));
        stop.countDown();
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(GRACE);
        for (var worker : workers) {
            worker.join(Math.max(1, (end - System.nanoTime()) / 1_000_000));
            if (worker.isAlive()) {
                fail(new Exception("no end " + GRACE + " s after the end of the work"));
            }
        }
        report();
    }

    /** Waits, and tells whether the time is over. */
    static boolean over(long milliseconds) {
        try {
            return stop.await(milliseconds, TimeUnit.MILLISECONDS);
        } catch (InterruptedException ignored) {
            return true;
        }
    }

    static void check(String work, int status, String server, String body) throws Exception {
        String right = "{\"server\":\"" + server + "\"}\n";
        if (work.equals("chunked")) {
            right = List.of(1, 2, 3).stream()
                    .map(part -> "{\"server\":\"" + server + "\",\"part\":" + part + "}\n")
                    .collect(Collectors.joining());
        }
        if (status != 200 || server.isEmpty() || !body.equals(right)) {
            throw new Exception("wrong answer: " + status + " from " + server + ": " + body);
        }
    }

    static synchronized void succeed(String server) {
        requests++;
        servers.merge(server, 1L, Long::sum);
    }

    static synchronized void fail(Exception error) {
        Throwable root = error;
        while (root.getCause() != null) {
            root = root.getCause();
        }
        String text = error.toString();
        if (!text.contains(root.toString())) {
            text += " <- " + root;
        }
        text = text.replaceAll("\\s+", " ");
        text = text.substring(0, Math.min(200, text.length()));
        requests++;
        failed++;
        if (!errors.containsKey(text) && errors.size() >= 9) {
            text = "others";
        }
        if (!errors.containsKey(text)) {
            System.err.println(LocalTime.now().truncatedTo(ChronoUnit.SECONDS) + " " + CLIENT + ": " + text);
        }
        errors.merge(text, 1L, Long::sum);
    }

    static synchronized void report() {
        System.out.println("{\"client\":" + json(CLIENT) + ",\"requests\":" + requests + ",\"failed\":" + failed
                + ",\"errors\":" + json(errors) + ",\"servers\":" + json(servers) + "}");
    }

    static String json(Map<String, Long> counts) {
        return counts.entrySet().stream()
                .map(count -> json(count.getKey()) + ":" + count.getValue())
                .collect(Collectors.joining(",", "{", "}"));
    }

    static String json(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
    }
}

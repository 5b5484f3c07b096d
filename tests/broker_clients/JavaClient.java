import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** One run of Java's own client with its defaults (idempotent, acks all): produce, then read everything back as a group.
 * Arguments: BOOTSTRAP TOPIC COUNT [NAME=VALUE of a producer setting]. Prints one JSON line. */
public class JavaClient {
    public static void main(String[] arguments) {
        List<String> acknowledged = new ArrayList<>();
        int found = 0;
        String error = null;
        try {
            Properties settings = new Properties();
            settings.put("bootstrap.servers", arguments[0]);
            settings.put("delivery.timeout.ms", "15000");
            settings.put("request.timeout.ms", "10000");
            settings.put("max.block.ms", "10000");
            settings.put("default.api.timeout.ms", "10000");
            for (int i = 3; i < arguments.length; i++) {
                String[] setting = arguments[i].split("=", 2);
                settings.put(setting[0], setting[1]);
            }
            produce(settings, arguments[1], Integer.parseInt(arguments[2]), acknowledged);
            found = consume(arguments[0], arguments[1], new HashSet<>(acknowledged));
        } catch (Throwable thrown) {
            Throwable cause = thrown.getCause() == null ? thrown : thrown.getCause();
            error = "\"" + (cause.getClass().getSimpleName() + ": " + cause.getMessage()).replace("\"", "'") + "\"";
        }
        String values = acknowledged.stream().map(value -> "\"" + value + "\"").collect(Collectors.joining(","));
        System.out.println("{\"acknowledged\":[" + values + "],\"found\":" + found + ",\"error\":" + error + "}");
        System.exit(0);
    }

    static void produce(Properties settings, String topic, int count, List<String> acknowledged) throws Exception {
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            if (settings.containsKey("transactional.id")) {
                producer.initTransactions();
            }
            List<String> values = new ArrayList<>();
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (int i = 0; i < count; i++) {
                String value = UUID.randomUUID().toString();
                var record = new ProducerRecord<>(topic, "key", value);
                record.headers().add("origin", "java".getBytes());
                values.add(value);
                sent.add(producer.send(record));
            }
            for (int i = 0; i < count; i++) {
                sent.get(i).get(20, TimeUnit.SECONDS);
                acknowledged.add(values.get(i));
            }
        }
    }

    static int consume(String bootstrap, String topic, Set<String> wanted) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrap);
        settings.put("group.id", "java-" + UUID.randomUUID());
        settings.put("auto.offset.reset", "earliest");
        Set<String> found = new HashSet<>();
        try (var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            long end = System.nanoTime() + Duration.ofSeconds(25).toNanos();
            while (System.nanoTime() < end && found.size() < wanted.size()) {
                consumer.poll(Duration.ofMillis(500)).forEach(record -> {
                    boolean whole = record.headers().lastHeader("origin") != null;
                    if (whole && wanted.contains(record.value())) {
                        found.add(record.value());
                    }
                });
            }
            consumer.commitSync();
        }
        return found.size();
    }
}

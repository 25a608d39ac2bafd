// What the official client writes, and what it reads: java -cp 'jars/*' Interop.java write|read SERVER TOPIC COUNT

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Interop {
    public static void main(String[] args) throws Exception {
        String server = args[1], topic = args[2];
        int count = Integer.parseInt(args[3]);
        if (args[0].equals("write")) {
            write(server, topic, count);
        } else {
            read(server, topic, count);
        }
    }

    // Keys "key-0", "key-1", ...; of the last no value. Prints the partition that the client chose for each.
    private static void write(String server, String topic, int count) throws Exception {
        Map<String, Object> config = new HashMap<>();
        config.put("bootstrap.servers", server);
        config.put("compression.type", "lz4");
        try (var producer = new KafkaProducer<>(config, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (int n = 0; n < count; n++) {
                String body = "{\"n\":" + n + "}";
                var record = new ProducerRecord<>(topic, bytes("key-" + n), n == count - 1 ? null : bytes(body));
                record.headers().add("content-type", bytes("application/json"));
                record.headers().add("größe", bytes("42"));
                record.headers().add("empty", null);
                RecordMetadata stored = producer.send(record).get();
                System.out.println("key-" + n + " " + stored.partition());
            }
        }
    }

    // Prints for each record its partition, key, value and headers, all but the first in Base64; "-" for none.
    private static void read(String server, String topic, int count) {
        Map<String, Object> config = new HashMap<>();
        config.put("bootstrap.servers", server);
        config.put("auto.offset.reset", "earliest");
        try (var consumer = new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = new ArrayList<>();
            consumer.partitionsFor(topic).forEach(p -> partitions.add(new TopicPartition(topic, p.partition())));
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            long until = System.currentTimeMillis() + 20_000;
            while (count > 0 && System.currentTimeMillis() < until) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    StringBuilder line = new StringBuilder();
                    line.append(record.partition()).append(' ').append(text(record.key()));
                    line.append(' ').append(text(record.value()));
                    for (Header header : record.headers()) {
                        line.append(' ').append(text(bytes(header.key()))).append('=').append(text(header.value()));
                    }
                    System.out.println(line);
                    count--;
                }
            }
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private static String text(byte[] data) {
        return data == null ? "-" : Base64.getUrlEncoder().withoutPadding().encodeToString(data) + ".";
    }
}

using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>fio and iscsi-perf judge limits, Prometheus' own tool judges metrics and rules.</summary>
public class MonitoringTests
{
    [Theory]
    [InlineData("nbd")]
    [InlineData("iscsi")]
    public void Clients_get_what_a_limited_volume_may_give_and_all_of_it_without_limits(string protocol)
    {
        using var blockd = new Blockd("demo", "64m");
        var pfcli = new Pfcli(blockd);
        pfcli.Run("set_qos", "-v", "demo", "--iops", "400");
        // Loose: what else the machine does makes it slower, and a late start lets a burst pass.
        double limited = Iops(blockd, protocol, 5);
        Assert.InRange(limited, 250, 440);
        pfcli.Run("set_qos", "-v", "demo", "--iops", "0");
        Assert.True(Iops(blockd, protocol, 2) > limited);
        Assert.Contains("kind=\"read\"", Metrics(blockd), StringComparison.Ordinal);
        Assert.Contains("no limits", pfcli.Run("show_volume", "-v", "demo"), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Promtool_finds_no_fault_in_metrics_rules_and_sample()
    {
        using var blockd = new Blockd("demo", "8m");
        Blockd.Run("/usr/bin/qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", blockd.UnixUri);
        string folder = Path.Combine(Blockd.Root, "deploy", "monitoring");
        string file = Path.Combine(blockd.Directory, "metrics");
        File.WriteAllText(file, Metrics(blockd));
        Blockd.Run("/bin/sh", "-c", $"/usr/bin/promtool check metrics < {file}");
        Blockd.Run("/usr/bin/promtool", "check", "rules", Path.Combine(folder, "prometheus-rules.yml"));
        Blockd.Run("/usr/bin/promtool", "check", "config", "--syntax-only", Path.Combine(folder, "prometheus.yml"));
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void A_client_that_breaks_off_is_noted_and_a_restart_keeps_the_note()
    {
        using var blockd = new Blockd("demo", "8m");
        var pfcli = new Pfcli(blockd);
        Blockd.Run("python3", "-c", """
            import os, signal, socket, struct, sys
            s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            s.recv(18, socket.MSG_WAITALL)
            s.send(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">III", 7, 10, 4) + b"demo" + struct.pack(">H", 0))
            s.recv(100)
            s.send(struct.pack(">IHHQQI", 0x25609513, 0, 1, 1, 0, 4096) + b"half") # half a write
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
            """, blockd.Port.ToString(CultureInfo.InvariantCulture));
        for (int i = 0; i < 100 && !pfcli.Run("list_event").Contains("session-lost", StringComparison.Ordinal); i++) Thread.Sleep(50);
        Assert.Contains("session-lost", pfcli.Run("list_event"), StringComparison.Ordinal);
        blockd.Kill();
        blockd.Restart();
        Assert.Contains("session-lost", pfcli.Run("list_event"), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    private static double Iops(Blockd blockd, string protocol, int seconds)
    {
        string time = seconds.ToString(CultureInfo.InvariantCulture);
        if (protocol == "iscsi")
        {
            string perf = Blockd.Run("/usr/bin/iscsi-perf", "-m", "16", "-b", "8", "-t", time, $"iscsi://127.0.0.1:{blockd.IscsiPort}/iqn.2026-11.org.blockserver:demo/0");
            return double.Parse(Regex.Matches(perf, "iops average ([0-9]+)")[^1].Groups[1].Value, CultureInfo.InvariantCulture);
        }

        string said = Blockd.Run(
            "/usr/bin/fio", "--name=limited", "--output-format=json", "--eta=never", "--thread=1", "--ioengine=nbd", "--uri=" + blockd.UnixUri, "--size=64m",
            "--rw=randread", "--bs=4k", "--iodepth=16", "--norandommap=1", "--time_based=1", "--runtime=" + time);
        JsonNode job = JsonNode.Parse(said[said.IndexOf('{', StringComparison.Ordinal)..(said.LastIndexOf('}') + 1)])!["jobs"]![0]!;
        Assert.Equal(0, job["error"]!.GetValue<int>());
        return job["read"]!["iops"]!.GetValue<double>();
    }

    private static string Metrics(Blockd blockd)
    {
        using var client = new HttpClient();
        string token = File.ReadAllText(Path.Combine(blockd.Directory, "admin.token")).Trim();
        client.DefaultRequestHeaders.Authorization = new("Bearer", token);
        return client.GetStringAsync(new Uri(blockd.ApiUrl + "/metrics")).GetAwaiter().GetResult();
    }
}

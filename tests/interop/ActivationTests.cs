using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The daemon started by a client or by systemd's protocol instead of by hand.</summary>
public sealed class ActivationTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("blockd-activation-").FullName;

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    [Fact]
    public void Nbdcopy_and_nbdinfo_start_it_on_their_own_socket_and_the_data_stays()
    {
        string image = Path.Combine(_directory, "in.img"), back = Path.Combine(_directory, "out.img");
        File.WriteAllBytes(image, [.. Enumerable.Range(0, 8 << 20).Select(i => (byte)(i * 31 >> (i & 7)))]);
        string[] daemon = ["[", Blockd.Program, "--data-dir", Data, "--store-size", "256m", "--create-volume", "demo:8m", "--stdio", "demo", "]"];
        Blockd.Run("nbdcopy", ["--flush", "--", image, .. daemon]);
        Assert.Contains("\"export-size\": 8388608", Blockd.Run("nbdinfo", ["--json", "--", .. daemon]), StringComparison.Ordinal);
        Blockd.Run("nbdcopy", ["--", .. daemon, back]);
        Blockd.Run("cmp", image, back);
        // nbd_connect_command: one connected socket as standard input and output.
        const string Script = """
            import nbd, sys
            h = nbd.NBD()
            h.connect_command(sys.argv[1:])
            assert h.get_size() == 8 << 20
            data = h.pread(1 << 20, 3 << 20)
            h.pwrite(data, 0, nbd.CMD_FLAG_FUA)
            h.shutdown()
            del h
            print("served", len(data))
            """;
        Assert.Contains("served 1048576", Blockd.Run("/usr/bin/python3", ["-c", Script, .. daemon[1..^1]]), StringComparison.Ordinal);
        Blockd.Run("nbdcopy", ["--", .. daemon, back]);
        byte[] expected = File.ReadAllBytes(image);
        expected.AsSpan(3 << 20, 1 << 20).CopyTo(expected);
        Assert.True(expected.AsSpan().SequenceEqual(File.ReadAllBytes(back)));

        (int code, string output) = Blockd.Try(Blockd.Program, "--data-dir", Data, "--stdio", "nothing");
        Assert.NotEqual(0, code);
        Assert.Contains("no volume 'nothing'", output, StringComparison.Ordinal);
        (code, output) = Blockd.Try("/bin/sh", "-c", $"echo | '{Blockd.Program}' --data-dir '{Data}' --stdio demo");
        Assert.NotEqual(0, code);
        Assert.Contains("not a connected socket", output, StringComparison.Ordinal);
    }

    [Fact]
    public void A_listening_socket_of_systemds_protocol_is_served_to_several_clients()
    {
        // libnbd plays systemd: it listens, sets LISTEN_PID and LISTEN_FDS and executes the daemon.
        const string Script = """
            import nbd, os, sys
            h = nbd.NBD()
            h.set_export_name("demo")
            h.connect_systemd_socket_activation([sys.argv[1], "--data-dir", sys.argv[2], "--store-size", "256m",
                                                 "--create-volume", "demo:8m", "--api", "none"])
            assert h.get_size() == 8 << 20
            h.pwrite(b"x" * 4096, 4096, nbd.CMD_FLAG_FUA)
            assert h.pread(4096, 4096) == b"x" * 4096
            socket = [l.split()[-1] for l in open("/proc/net/unix") if "libnbd" in l][-1]
            other = nbd.NBD()
            other.set_export_name("demo")
            other.connect_unix(socket)
            assert other.pread(4096, 4096) == b"x" * 4096
            other.shutdown()
            h.shutdown()
            print("served")
            """;
        Assert.Contains("served", Blockd.Run("/usr/bin/python3", "-c", Script, Blockd.Program, Data), StringComparison.Ordinal);
    }

    [Fact]
    public void Inherited_tcp_sockets_are_served_on_loopback_and_refused_beyond_it()
    {
        // As systemd does: the sockets at 3 and 4, their number and the reader's pid in the environment.
        const string Script = """
            import os, socket, subprocess, sys, threading
            mode, program, data = sys.argv[1:4]
            first = socket.create_server(("127.0.0.1", 0))
            second = {"loopback": lambda: socket.create_server(("::1", 0), family=socket.AF_INET6),
                      "open": lambda: socket.create_server(("0.0.0.0", 0)),
                      "silent": socket.socket, "names": lambda: socket.create_server(("127.0.0.1", 0))}[mode]()
            ports = [first.getsockname()[1], second.getsockname()[1]]
            os.set_blocking(first.fileno(), False)
            def begin():
                a, b = os.dup2(first.fileno(), 20), os.dup2(second.fileno(), 21)
                os.dup2(a, 3); os.dup2(b, 4)
                for fd in (3, 4): os.set_inheritable(fd, True)
                os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="api:x" if mode == "names" else "a:b")
                os.execv(program, [program, "--data-dir", data, "--store-size", "256m", "--create-volume", "demo:8m", "--api", "none"])
            out, into = os.pipe()
            child = os.fork()
            if child == 0:
                os.dup2(into, 1); os.dup2(into, 2)
                begin()
            os.close(into)
            said = os.fdopen(out)
            text = ""
            for line in said:
                text += line
                if line == "ready\n": break
            if "ready\n" in text:
                for host, port in (("127.0.0.1", ports[0]), ("[::1]", ports[1])):
                    text += subprocess.run(["nbdinfo", "--size", f"nbd://{host}:{port}/demo"], capture_output=True, text=True).stdout
                os.kill(child, 15)
            text += said.read()
            print(text, "exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            """;
        string served = Run("loopback");
        Assert.Equal(2, served.Split('\n').Count(l => l == "8388608"));
        Assert.Contains("stopped", served, StringComparison.Ordinal);
        Assert.EndsWith("exit 0", served.TrimEnd(), StringComparison.Ordinal);
        Assert.Contains("--tls-clients required, or --insecure", Run("open"), StringComparison.Ordinal);
        Assert.Contains("does not listen", Run("silent"), StringComparison.Ordinal);
        Assert.Contains("LISTEN_FDNAMES", Run("names"), StringComparison.Ordinal);

        string Run(string mode) => Blockd.Run("/usr/bin/python3", "-c", Script, mode, Blockd.Program, Data);
    }

    private string Data => Path.Combine(_directory, "data");
}

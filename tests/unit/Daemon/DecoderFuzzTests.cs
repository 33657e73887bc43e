using System.Net.Sockets;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Tests.Fuzz;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Damaged files and requests of the daemon, from golden bytes and seeded: each is taken or refused in the way that
/// its reader documents, never by another exception. What decodes what is listed in tests/fuzz/README.md.</summary>
public sealed class DecoderFuzzTests
{
    private const int Inputs = 20_000;

    [Fact]
    public void Settings_files()
    {
        byte[] golden = """{ "nbd": ["127.0.0.1:0", "unix:/tmp/x"], "loops": 2, "store-size": "10g", "insecure": true, /* c */ "engine": "aio", }"""u8.ToArray();
        Run(golden, 1, bytes =>
        {
            var sources = new SettingsSources();
            sources.AddJson(bytes, "b.json");
            sources.Read("/d", 1 << 30);
        }, e => e is SettingException);
    }

    [Fact]
    public void Chap_files()
    {
        string path = Path.GetTempFileName();
        try
        {
            byte[] golden = "# who\nuser alice twelve-or-more\nuser bob another-secret-1\nmutual t the-other-way-0\n"u8.ToArray();
            Run(golden, 1, bytes =>
            {
                File.WriteAllBytes(path, bytes);
                ChapFile.Load(path);
            }, e => e is StartException, Inputs / 10);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Disk_records()
    {
        byte[] golden = """{"Path":"/var/lib/blockd/store.blk","Name":"store","IsRemoved":false}"""u8.ToArray();
        Run(golden, 1, bytes =>
        {
            (Guid id, DiskRecord record) = Disks.DecodeRecord(new MetaEntry("disk/00112233-4455-6677-8899-aabbccddeeff", bytes, 1, 1));
            Assert.True(id != Guid.Empty && record.Path is not null && record.Name is not null);
        }, e => e is InvalidDataException);
    }

    [Fact]
    public void Sizes_and_socket_variables()
    {
        Run("1024MiB"u8.ToArray(), 1, bytes =>
        {
            if (SizeText.TryParse(Encoding.Latin1.GetString(bytes), out _, out string reason)) return;
            throw new FormatException(reason);
        }, e => e is FormatException);
        Run("3:nbd:other"u8.ToArray(), 1, bytes =>
        {
            string[] parts = Encoding.Latin1.GetString(bytes).Split(':', 2);
            SystemdSockets.Read(name => name switch { "LISTEN_PID" => "7", "LISTEN_FDS" => parts[0], _ => parts.Length > 1 ? parts[1] : null }, 7);
        }, e => e is SettingException);
    }

    [Theory]
    [InlineData("POST", "/v1/volumes", """{"name":"fuzzed","sizeBytes":1048576,"repCount":1,"export":{"nbd":true,"iscsi":false,"readOnly":false},"description":"d"}""")]
    [InlineData("PATCH", "/v1/volumes/victim", """{"name":"victim","sizeBytes":2097152,"force":false,"export":{"nbd":true,"iscsi":true,"readOnly":true},"description":null}""")]
    [InlineData("POST", "/v1/volumes/victim/scrub", """{"bytesPerSecond":1048576}""")]
    public async Task Bodies_of_the_API(string method, string path, string body)
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.Test.CreateAsync("victim");
        byte[] golden = Encoding.UTF8.GetBytes(body);
        for (ulong seed = 1; seed <= 250; seed++)
        {
            var random = new SeededRandom(seed);
            byte[] bytes = [.. golden];
            Mutator.Mutate(random, bytes);
            byte[] head = Encoding.UTF8.GetBytes(server.Request(method, path, "", headers: $"Content-Type: application/json\r\nContent-Length: {bytes.Length}\r\n"));
            using Socket socket = await RawHttp.ConnectAsync(server.Port);
            await RawHttp.SendAllAsync(socket, [.. head, .. bytes]);
            RawAnswer answer = await RawHttp.ReadAsync(socket);
            Assert.True(answer.Status is >= 200 and < 500, $"seed {seed}: {answer.Status} {answer.Body} to {Encoding.Latin1.GetString(bytes)}");
            Assert.DoesNotContain("   at ", answer.Body, StringComparison.Ordinal);
        }

        Assert.Equal(200, (await server.SendAsync("GET", "/v1/node")).Status);
        Assert.Equal(200, (await server.SendAsync("GET", "/v1/volumes")).Status);
    }

    private static void Run(byte[] golden, int takenMin, Action<byte[]> read, Func<Exception, bool> isRefusal, int inputs = Inputs)
    {
        int taken = 0, refused = 0;
        for (ulong seed = 0; seed < (ulong)inputs; seed++)
        {
            var random = new SeededRandom(seed);
            byte[] bytes = random.NextChance(0.9) ? [.. golden] : golden[..random.NextBelow(golden.Length)];
            if (seed > 0) Mutator.Mutate(random, bytes);
            try
            {
                read(bytes);
                taken++;
            }
            catch (Exception e) when (isRefusal(e))
            {
                Assert.NotEqual("", e.Message);
                refused++;
            }
            catch (Exception e) when (e is not (OutOfMemoryException or Xunit.Sdk.XunitException))
            {
                Assert.Fail($"seed {seed}: {e}\n{Encoding.Latin1.GetString(bytes)}");
            }
        }

        Assert.True(taken >= takenMin && refused > inputs / 10, $"{taken} taken, {refused} refused");
    }
}

using System.Net;
using System.Net.Sockets;
using System.Text;
using BlockServer.Core;
using BlockServer.Pfcli;
using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Files that are handed over to the daemon, which reads and writes them itself.</summary>
public sealed class HandedFileTests
{
    private const ulong Size = 6 * Units.MiB + 512;

    private static async Task<StreamWorld> FilledAsync()
    {
        StreamWorld world = await StreamWorld.StartAsync();
        await world.CreateAsync("vm1", Size);
        await world.WriteAsync("vm1", 8192, StreamWorld.Pattern(1, 2 << 20));
        await world.WriteAsync("vm1", (1 << 20) + 4096, new byte[100_000]); // zeros in the midst of data
        await world.WriteAsync("vm1", 4 << 20, new byte[1 << 20]);
        await world.WriteAsync("vm1", Size - 700, StreamWorld.Pattern(2, 700));
        await world.CutAsync("vm1", 1);
        return world;
    }

    private static string SocketOf(StreamWorld world) => Path.Combine(Path.GetDirectoryName(world.Daemon.TokenPath)!, "files.sock");

    private static HandedTicket Hand(StreamWorld world, SafeFileHandle file) =>
        HandedTicket.TryHand(SocketOf(world), file) ?? throw new InvalidOperationException("the file was not taken");

    private static SafeFileHandle Create(string path) => File.OpenHandle(path, FileMode.CreateNew, FileAccess.ReadWrite);

    /// <summary>What the daemon said while it wrote: the header, and the lines behind it.</summary>
    private static async Task<(byte[] Header, string[] Lines)> ExportAsync(StreamWorld world, SafeFileHandle file, string query)
    {
        using HandedTicket ticket = Hand(world, file);
        using HttpResponseMessage answer = await world.SendAsync(HttpMethod.Get, $"volumes/vm1/snapshots/s1/stream?file={ticket.Text}&{query}", null);
        Assert.Equal(HttpStatusCode.OK, answer.StatusCode);
        byte[] bytes = await answer.Content.ReadAsByteArrayAsync(TestContext.Current.CancellationToken);
        return (bytes[..StreamHeader.Size], Encoding.UTF8.GetString(bytes[StreamHeader.Size..]).Split('\n', StringSplitOptions.RemoveEmptyEntries));
    }

    [Theory]
    [InlineData("none")]
    [InlineData("lz4")]
    public async Task A_stream_that_the_daemon_writes_is_the_one_that_it_would_send(string compress)
    {
        await using StreamWorld world = await FilledAsync();
        string path = world.PathOf("out.stream");
        using (SafeFileHandle file = Create(path))
        {
            (byte[] header, string[] lines) = await ExportAsync(world, file, $"format=stream&compress={compress}");
            byte[] written = await File.ReadAllBytesAsync(path, TestContext.Current.CancellationToken);
            Assert.Equal(header, written[..StreamHeader.Size]);
            Assert.Equal((ulong)written.Length, StreamCursor.TryParse(Assert.Single(lines)["end ".Length..])!.PositionBytes);
            byte[] sent = await world.ExportAsync("vm1", 1, more: $"compress={compress}");
            Assert.Equal(sent.Length, written.Length);
            // The identity of the stream, and what follows from it, is another each time.
            Assert.Null(await world.ImportAsync("back", written));
        }

        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("back"));
    }

    [Fact]
    public async Task An_image_that_the_daemon_writes_is_whole_and_sparse()
    {
        await using StreamWorld world = await FilledAsync();
        string path = world.PathOf("out.img");
        using SafeFileHandle file = Create(path);
        await ExportAsync(world, file, "format=raw");
        RandomAccess.SetLength(file, (long)Size);
        Assert.Equal(await world.ReadAsync("vm1"), await File.ReadAllBytesAsync(path, TestContext.Current.CancellationToken));
        Assert.Equal(4UL << 20, BlockServer.Io.HandedFile.NextData(file, 3 << 20) is { } data ? Math.Min(data, 4UL << 20) : 0);
        Assert.True(BlockServer.Io.HandedFile.NextData(file, 4UL << 20) >= 5UL << 20, "written zeros take room");
    }

    [Theory]
    [InlineData("raw")]
    [InlineData("stream")]
    public async Task What_was_interrupted_goes_on_whoever_writes_the_rest(string format)
    {
        await using StreamWorld world = await FilledAsync();
        byte[] whole = await world.ExportAsync("vm1", 1);
        Assert.Null(StreamHeader.TryRead(whole, out StreamHeader? header));
        var decoder = new StreamDecoder(header!);
        int at = StreamHeader.Size;
        while (decoder.Cursor.OffsetBytes < 2 << 20)
        {
            Assert.Null(decoder.ReadFrame(whole.AsSpan(at), out StreamFrame frame));
            Assert.Null(decoder.Pass(frame, whole.AsSpan(at + StreamFrame.Size, frame.PayloadBytes)));
            at += StreamFrame.Size + frame.PayloadBytes;
        }

        string path = world.PathOf("out");
        using SafeFileHandle file = Create(path);
        byte[] content = await world.ReadAsync("vm1");
        int begun = format == "raw" ? (int)decoder.Cursor.OffsetBytes : at;
        RandomAccess.Write(file, (format == "raw" ? content : whole).AsSpan(0, begun), 0);
        await ExportAsync(world, file, $"format={format}&cursor={decoder.Cursor}");
        if (format == "raw") RandomAccess.SetLength(file, (long)Size);
        Assert.Equal(format == "raw" ? content : whole, await File.ReadAllBytesAsync(path, TestContext.Current.CancellationToken));
    }

    [Fact]
    public async Task Who_hands_over_a_file_that_cannot_be_written_is_told_why()
    {
        await using StreamWorld world = await FilledAsync();
        string path = world.PathOf("out.img");
        Create(path).Dispose();
        using SafeFileHandle file = File.OpenHandle(path, FileMode.Open, FileAccess.Read);
        (_, string[] lines) = await ExportAsync(world, file, "format=raw");
        Assert.StartsWith("fault ", Assert.Single(lines), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    public async Task Pfcli_brings_out_and_in_the_same_with_and_without_handing_over(bool hands, bool isRaw)
    {
        await using StreamWorld world = await FilledAsync();
        string file = world.PathOf("vm1.out"), format = isRaw ? "raw" : "stream";
        await PfcliAsync(world, hands, "export_image", "-v", "vm1", "-n", "s1", "--format", format, "-o", file);
        if (isRaw) Assert.Equal(await world.ReadAsync("vm1"), await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken));
        await PfcliAsync(world, hands, "import_image", "-v", "vm2", "-i", file);
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
        Assert.Null(world.Volume("vm2").Import);
        if (isRaw) return;
        await world.WriteAsync("vm1", 20480, StreamWorld.Pattern(3, 30_000));
        await world.CutAsync("vm1", 2);
        await PfcliAsync(world, hands, "export_image", "-v", "vm1", "-n", "s2", "--base", "s1", "-o", file + "2");
        await PfcliAsync(world, hands, "import_image", "-v", "vm2", "-i", file + "2");
        Assert.Equal(await world.ReadAsync("vm1"), await world.ReadAsync("vm2"));
        byte[] damaged = await File.ReadAllBytesAsync(file, TestContext.Current.CancellationToken);
        damaged[^300] ^= 1;
        await File.WriteAllBytesAsync(file, damaged, TestContext.Current.CancellationToken);
        using StringWriter error = new();
        Assert.Equal(ExitCode.Failed, await TryAsync(world, hands, error, "import_image", "-v", "vm3", "-i", file));
        Assert.Null(world.Daemon.Directory.Find("vm3"));
    }

    [Fact]
    public async Task An_image_that_is_handed_over_is_the_stream_that_would_be_sent()
    {
        await using StreamWorld world = await FilledAsync();
        string path = world.PathOf("in.img");
        await File.WriteAllBytesAsync(path, await world.ReadAsync("vm1"), TestContext.Current.CancellationToken);
        using SafeFileHandle file = File.OpenHandle(path);
        var header = new StreamHeader { StreamId = Guid.NewGuid(), SizeBytes = Size };
        var source = new Blockd.ImageSource(file, header, null);
        var batch = new StreamBatch(16 << 20);
        while (source.OffsetBytes < Size) await source.TakeAsync(batch, default);
        var written = new System.Buffers.ArrayBufferWriter<byte>();
        var encoder = new StreamEncoder(header);
        byte[] content = await world.ReadAsync("vm1");
        for (ulong at = 0; at < Size; at = encoder.Cursor.OffsetBytes)
            BatchEncoder.Write(encoder, at, content.AsSpan((int)at, RawImage.PieceBytes(at, Size)), written);
        Assert.Equal(encoder.Cursor.ToString(), source.Place);
        var rebuilt = new byte[Size];
        foreach (StreamPiece piece in batch.Pieces.Where(p => p.Kind == StreamKind.Data)) batch.DataOf(piece).CopyTo(rebuilt.AsMemory((int)piece.OffsetBytes));
        Assert.Equal(content, rebuilt);
        await source.TakeAsync(batch, default);
        Assert.True(source.IsWhole);
        Assert.Equal(encoder.Cursor.ToString(), source.Place);
    }

    [Fact]
    public async Task An_image_of_nothing_but_written_zeros_fits_into_batches()
    {
        string path = Path.GetTempFileName();
        try
        {
            const ulong Zeros = 600 << 20;
            using SafeFileHandle file = File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite);
            RandomAccess.SetLength(file, (long)Zeros);
            var block = new byte[Units.BlockBytes]; // one written block in each megabyte: no hole is seen
            for (ulong at = 0; at < Zeros; at += StreamHeader.DataBytesMax) RandomAccess.Write(file, block, (long)at);
            // The last one is cut to as many pieces as there can be.
            for (int at = 0; at < StreamHeader.DataBytesMax; at += 5 * Units.BlockBytes) RandomAccess.Write(file, new byte[] { 1 }, (long)(510UL << 20) + at);
            var source = new Blockd.ImageSource(file, new StreamHeader { StreamId = Guid.NewGuid(), SizeBytes = Zeros }, null);
            var batch = new StreamBatch(2 << 20);
            int batches = 1;
            while (!source.IsWhole)
            {
                if (!batch.HasRoom(StreamHeader.DataBytesMax))
                {
                    batch.Clear();
                    batches++;
                }

                await source.TakeAsync(batch, default);
            }

            Assert.Equal(Zeros, source.OffsetBytes);
            Assert.True(batches > 1);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public async Task A_ticket_is_good_once_and_while_its_sender_is_there()
    {
        await using StreamWorld world = await FilledAsync();
        string path = world.PathOf("out.img");
        using SafeFileHandle file = Create(path);
        using (HandedTicket ticket = Hand(world, file))
        {
            using HttpResponseMessage first = await world.SendAsync(HttpMethod.Get, $"volumes/vm1/snapshots/s1/stream?file={ticket.Text}&format=raw", null);
            Assert.Equal(HttpStatusCode.OK, first.StatusCode);
            await first.Content.ReadAsByteArrayAsync(TestContext.Current.CancellationToken);
            using HttpResponseMessage again = await world.SendAsync(HttpMethod.Get, $"volumes/vm1/snapshots/s1/stream?file={ticket.Text}&format=raw", null);
            Assert.Equal("no-file", await StreamWorld.CodeAsync(again));
        }

        string gone;
        using (HandedTicket ticket = Hand(world, file)) gone = ticket.Text;
        for (int i = 0; i < 500 && world.Daemon.HandedFiles!.Count > 0; i++) await Task.Delay(10, TestContext.Current.CancellationToken);
        using HttpResponseMessage late = await world.SendAsync(HttpMethod.Get, $"volumes/vm1/snapshots/s1/stream?file={gone}&format=raw", null);
        Assert.Equal("no-file", await StreamWorld.CodeAsync(late));
        using HttpResponseMessage wrong = await world.SendAsync(HttpMethod.Get, "volumes/vm1/snapshots/s1/stream?format=raw", null);
        Assert.Equal("invalid-query", await StreamWorld.CodeAsync(wrong));
    }

    [Fact]
    public async Task What_is_no_file_is_not_taken()
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        using var pipe = new System.IO.Pipes.AnonymousPipeServerStream(System.IO.Pipes.PipeDirection.In);
        using var handle = new SafeFileHandle(pipe.SafePipeHandle.DangerousGetHandle(), ownsHandle: false);
        Assert.Null(HandedTicket.TryHand(SocketOf(world), handle));
        // Nor a ticket without a file, nor one that is too short.
        foreach (int length in new[] { Blockd.HandedFiles.TicketBytes, 3 })
        {
            using var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { ReceiveTimeout = 10_000 };
            await socket.ConnectAsync(new UnixDomainSocketEndPoint(SocketOf(world)), TestContext.Current.CancellationToken);
            await socket.SendAsync(new byte[length], TestContext.Current.CancellationToken);
            var answer = new byte[1];
            Assert.Equal(1, socket.Receive(answer));
            Assert.Equal(0, answer[0]);
        }

        Assert.Equal(0, world.Daemon.HandedFiles!.Count);
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(SocketOf(world)));
    }

    private static async Task PfcliAsync(StreamWorld world, bool hands, params string[] args)
    {
        using StringWriter error = new();
        int code = await TryAsync(world, hands, error, args);
        Assert.True(code == 0, error.ToString());
    }

    private static Task<int> TryAsync(StreamWorld world, bool hands, TextWriter error, params string[] args) =>
        CommandLine.RunAsync(["--server", world.Url, "--token-file", world.Daemon.TokenPath, "--yes", .. args], new CliHost
        {
            Out = TextWriter.Null,
            Error = error,
            In = TextReader.Null,
            Environment = _ => null,
            Transport = CliHost.OfProcess().Transport,
            HandsFiles = hands,
            Delay = Task.Delay,
        }, TestContext.Current.CancellationToken);
}

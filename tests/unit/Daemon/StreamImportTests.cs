using System.Buffers;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Streams;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>An import goes on receiving while a part of it is made durable.</summary>
public sealed class StreamImportTests
{
    private const ulong Size = 4 * Part;
    private const ulong Part = 64 * Units.MiB;

    /// <summary>Two MiB of data and a hole in each part, so that each fills a batch.</summary>
    private static (StreamHeader Header, byte[] Body, byte[][] Data) Stream()
    {
        var header = new StreamHeader { StreamId = StreamWorld.Id(1), SizeBytes = Size };
        var encoder = new StreamEncoder(header);
        var body = new ArrayBufferWriter<byte>();
        byte[][] data = [.. Enumerable.Range(1, 4).Select(i => StreamWorld.Pattern((ulong)i, 2 << 20))];
        for (int i = 0; i < 4; i++)
        {
            ulong at = (ulong)i * Part;
            BatchEncoder.Write(encoder, at, data[i].AsSpan(0, 1 << 20), body);
            BatchEncoder.Write(encoder, at + Units.MiB, data[i].AsSpan(1 << 20), body);
            body.Advance(encoder.Empty(StreamKind.Hole, at + 2 * Units.MiB, Part - 2 * Units.MiB, body.GetSpan(StreamFrame.Size)));
        }

        body.Advance(encoder.End(body.GetSpan(StreamFrame.Size + StreamEncoder.TotalsBytes)));
        return (header, body.WrittenSpan.ToArray(), data);
    }

    private static async Task<byte[]> ReadAsync(StreamWorld world, ulong at)
    {
        var content = new byte[2 << 20];
        StoreHost host = world.Host("vm1");
        ReadResult result = await host.Thread.InvokeAsync(() => host.Store.OpenVolume(world.Volume("vm1").Id)!.ReadAsync(at, content));
        Assert.Equal(IoStatus.Ok, result.Status);
        return content;
    }

    [Fact]
    public async Task A_place_is_kept_when_all_in_front_of_it_is_there_and_one_after_the_other()
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        await world.CreateAsync("vm1", Size);
        (StreamHeader header, byte[] body, byte[][] data) = Stream();
        var places = new List<ulong>();
        int atWork = 0;
        var job = new StreamImport(world.Host("vm1"), world.Volume("vm1").Id, header, new FrameSource(new MemoryStream(body), new StreamDecoder(header), TimeSpan.FromMinutes(5)), new ImportLimits(), async cursor =>
        {
            Assert.Equal(1, Interlocked.Increment(ref atWork));
            ulong place = StreamCursor.TryParse(cursor)!.OffsetBytes;
            for (int i = 0; i < (int)((place + Part - 1) / Part); i++) Assert.Equal(data[i], await ReadAsync(world, (ulong)i * Part));
            places.Add(place);
            await Task.Delay(50, TestContext.Current.CancellationToken);
            Interlocked.Decrement(ref atWork);
        });
        await job.RunAsync(TestContext.Current.CancellationToken);
        Assert.Equal(0, atWork);
        // The hole comes when the batch is full already.
        Assert.Equal([Part + 2 * Units.MiB, 2 * Part + 2 * Units.MiB, 3 * Part + 2 * Units.MiB, Size], places);
    }

    [Fact]
    public async Task A_place_that_cannot_be_kept_ends_the_import()
    {
        await using StreamWorld world = await StreamWorld.StartAsync();
        await world.CreateAsync("vm1", Size);
        (StreamHeader header, byte[] body, _) = Stream();
        int kept = 0;
        var job = new StreamImport(world.Host("vm1"), world.Volume("vm1").Id, header, new FrameSource(new MemoryStream(body), new StreamDecoder(header), TimeSpan.FromMinutes(5)), new ImportLimits(), async _ =>
        {
            kept++;
            await Task.Yield();
            throw new ImportException(false, 503, "test", "not kept");
        });
        ImportException fault = await Assert.ThrowsAsync<ImportException>(
            () => job.RunAsync(TestContext.Current.CancellationToken));
        Assert.Equal("test", fault.Code);
        Assert.Equal(1, kept);
    }
}

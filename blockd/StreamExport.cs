using System.Threading.Channels;
using BlockServer.Core;
using BlockServer.Streams;

namespace BlockServer.Blockd;

/// <summary>Brings a snapshot out as a stream: the loop reads batches ahead while the thread pool packs and sends, or writes them into a
/// file. One use.</summary>
internal sealed class StreamExport(StoreHost host, uint volumeId, StreamHeader header, ICompressor? compressor)
{
    private const int BatchBytes = 2 << 20, Batches = 3;

    /// <summary>Told how many bytes of the content have gone, about every 2 MiB. Set before it runs.</summary>
    public Action<ulong>? Progress { get; init; }

    /// <summary>Begins at <paramref name="from"/>, or with the header when that is null; the end frame comes last. Throws
    /// <see cref="IOException"/> with a sentence when the content cannot be read: what was sent is not whole then, and says so
    /// by its missing end.</summary>
    public async Task RunAsync(IExportSink sink, StreamCursor? from, CancellationToken cancel)
    {
        await sink.BeginAsync(header, from is null, cancel);
        var encoder = new StreamEncoder(header, compressor, from);
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(cancel);
        var full = Channel.CreateBounded<StreamBatch>(Batches);
        var empty = Channel.CreateBounded<StreamBatch>(Batches);
        for (int i = 0; i < Batches; i++) empty.Writer.TryWrite(new StreamBatch(BatchBytes));
        Task reading = ReadAsync(encoder.Cursor.OffsetBytes, empty.Reader, full.Writer, ended.Token);
        try
        {
            await foreach (StreamBatch batch in full.Reader.ReadAllAsync(ended.Token))
            {
                sink.Put(encoder, batch);
                empty.Writer.TryWrite(batch);
                Progress?.Invoke(encoder.Cursor.OffsetBytes);
                await sink.FlushAsync(encoder.Cursor, ended.Token);
            }

            await sink.EndAsync(encoder, ended.Token);
        }
        finally
        {
            // The loop must have let go of the batches, whatever went wrong here.
            await ended.CancelAsync();
            await reading.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
        }
    }

    private async Task ReadAsync(ulong offsetBytes, ChannelReader<StreamBatch> empty, ChannelWriter<StreamBatch> full, CancellationToken cancel)
    {
        Exception? fault = null;
        try
        {
            SnapshotReader? reader = await host.Thread.InvokeAsync(() => new ValueTask<SnapshotReader?>(
                SnapshotReader.Open(host.Store, volumeId, header.Base, header.Target!.Value, offsetBytes)))
                ?? throw new IOException("the snapshot was deleted meanwhile");
            while (true)
            {
                StreamBatch batch = await empty.ReadAsync(cancel);
                IoStatus status = await host.Thread.InvokeAsync(() => reader.FillAsync(batch));
                if (status != IoStatus.Ok) throw new IOException($"the snapshot cannot be read any more ({status})");
                if (batch.Pieces.Count == 0) break;
                await full.WriteAsync(batch, cancel);
            }
        }
#pragma warning disable CA1031 // It belongs to whoever reads the channel.
        catch (Exception e)
#pragma warning restore CA1031
        {
            fault = e;
        }

        full.TryComplete(fault);
    }
}

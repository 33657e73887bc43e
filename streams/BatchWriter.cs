using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>Writes batches into a volume. Lives on the volume's loop.</summary>
public static class BatchWriter
{
    /// <summary>Writes all pieces of <paramref name="batch"/> at once and answers when all have ended: the first error, or Ok.
    /// <paramref name="isBlank"/>: the device has never been written to, so that zeros are there already.</summary>
    public static async ValueTask<IoStatus> ApplyAsync(IBlockDevice device, StreamBatch batch, bool isBlank)
    {
        ValueTask<IoStatus>[] writes =
            [.. batch.Pieces.Where(piece => piece.Kind == StreamKind.Data || !isBlank).Select(piece => piece.Kind == StreamKind.Data
                ? device.WriteAsync(piece.OffsetBytes, batch.DataOf(piece), WriteFlags.None)
                : device.WriteZeroesAsync(piece.OffsetBytes, piece.LengthBytes, WriteFlags.None))];
        IoStatus status = IoStatus.Ok;
        foreach (ValueTask<IoStatus> write in writes)
        {
            IoStatus one = await write;
            if (status == IoStatus.Ok) status = one;
        }

        return status;
    }
}

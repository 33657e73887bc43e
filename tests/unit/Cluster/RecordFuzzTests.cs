using System.Text;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Tests.Fuzz;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Damaged records of the metadata database: a start goes on with what is whole, or refuses with a sentence that
/// names the record. No volume of a disk is deleted or changed because a record is damaged.</summary>
public sealed class RecordFuzzTests
{
    private const int Inputs = 4_000;

    [Theory]
    [InlineData("vol/1", "{}", "damaged")]
    [InlineData("vol/1", "null", "empty")]
    [InlineData("vol/1", "{", "damaged")]
    [InlineData("vol/1", "7", "damaged")]
    [InlineData("vol/1", "{\"id\":2,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4096,\"state\":\"Ready\",\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "another volume")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4096,\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "state")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4096,\"state\":0,\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "damaged")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4096,\"state\":\"Gone\",\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "damaged")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"../a\",\"sizeBytes\":4096,\"state\":\"Ready\",\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "name")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":null,\"sizeBytes\":4096,\"state\":\"Ready\",\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "name")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4096,\"state\":\"Ready\",\"export\":null,\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "offered")]
    [InlineData("vol/1", "{\"id\":1,\"uuid\":\"00000000-0000-0000-0000-000000000001\",\"name\":\"a\",\"sizeBytes\":4095,\"state\":\"Ready\",\"export\":{},\"description\":null,\"storeId\":\"00000001-0000-0000-0000-000000000000\",\"createdAt\":\"1970-01-01T00:00:00+00:00\",\"idempotencyKey\":null}", "size")]
    public async Task A_record_that_cannot_be_is_refused_by_its_key(string key, string json, string what)
    {
        var world = new DirectoryWorld();
        await world.Meta.TransactAsync([], [new MetaChange(key, Encoding.UTF8.GetBytes(json))]);
        InvalidDataException refused = await Assert.ThrowsAsync<InvalidDataException>(() => world.Begin().ReconcileAsync(world.Hosts()));
        Assert.Contains(key, refused.Message, StringComparison.Ordinal);
        Assert.Contains(what, refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Damaged_records_are_refused_or_read_and_the_disks_stay_as_they_are()
    {
        (byte[] golden, VolumeHead head) = await GoldenAsync();
        int refused = 0, read = 0;
        for (ulong seed = 1; seed <= Inputs; seed++)
        {
            var random = new SeededRandom(seed);
            byte[] bytes = random.NextChance(0.9) ? [.. golden] : golden[..random.NextBelow(golden.Length)];
            Mutator.Mutate(random, bytes);
            // A state that a flip turned into a right other one is no damage that could be seen.
            string text = Encoding.Latin1.GetString(bytes);
            if (text.Contains("\"Creating\"", StringComparison.Ordinal) || text.Contains("\"Deleting\"", StringComparison.Ordinal)) continue;
            var world = new DirectoryWorld();
            SortedDictionary<uint, VolumeHead> disk = world.Disks.Values.First();
            disk.Add(head.Id, head);
            await world.Meta.TransactAsync([], [new MetaChange("vol/1", bytes)]);
            try
            {
                await world.Begin().ReconcileAsync(world.Hosts());
                read++;
            }
            catch (InvalidDataException e)
            {
                Assert.Contains("vol/1", e.Message, StringComparison.Ordinal);
                refused++;
            }
            catch (Exception e) when (e is not OutOfMemoryException)
            {
                Assert.Fail($"seed {seed}: {e}\n{text}");
            }

            Assert.True(disk.ContainsKey(head.Id), $"seed {seed} deleted the volume: {text}");
        }

        Assert.True(refused > Inputs / 4 && read > 10, $"{refused} refused, {read} read");
    }

    private static async Task<(byte[] Golden, VolumeHead Head)> GoldenAsync()
    {
        var world = new DirectoryWorld();
        VolumeDirectory directory = world.Begin();
        await directory.ReconcileAsync(world.Hosts());
        DirectoryResult made = await directory.CreateAsync(new CreateVolume("a", 1 << 20, StoreId: world.Disks.Keys.First()));
        Assert.Null(made.Fault);
        MetaEntry entry = (await world.Meta.GetAsync("vol/1"))!;
        return (entry.Value.ToArray(), world.Disks.Values.First().Values.Single());
    }
}
